"""Training: batches, losses, updates, the run's files and its exact resume."""
