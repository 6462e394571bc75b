"""Scores that mean a probability: fitted, judged on what they were not fitted on, and drawn."""
