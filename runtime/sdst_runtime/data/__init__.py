"""Annotations, features and where they lie, as samples that a head is trained and measured on.

Reads every layout that this project or the data sets' authors write, and says what it mends."""
