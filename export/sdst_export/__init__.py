"""Lowers: a checkpoint and a backbone to ONNX files and a bundle. Imports `sdst_train` and `sdst_runtime`."""
