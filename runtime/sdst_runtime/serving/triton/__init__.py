"""A model repository for NVIDIA's Triton Inference Server: the models of a bundle, and one that asks them."""
