"""Sparse-Dense Side-Tuner: video temporal grounding from training to a compiled runtime."""

__version__ = "0.1.0"
