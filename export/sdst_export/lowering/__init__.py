"""Writes the trained model as ONNX, node by node: what depends on no clip and no sentence is computed here, once."""
