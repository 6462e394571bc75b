"""Learns: backbone, model, losses, data and trainer, in PyTorch. Imports only `sdst_runtime` of this project."""
