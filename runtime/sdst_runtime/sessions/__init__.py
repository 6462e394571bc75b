"""A model file behind `run(inputs) -> outputs`, whatever runs it: ONNX Runtime or TensorRT."""
