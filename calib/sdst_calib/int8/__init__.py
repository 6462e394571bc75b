"""Explicit int8 quantisation: scales, Q/DQ in the graph, and the search within a budget of points."""
