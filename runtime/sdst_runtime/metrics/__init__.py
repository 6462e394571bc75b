"""Scores of predictions, as the official evaluators of the field compute them, and submissions."""
