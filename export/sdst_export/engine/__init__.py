"""One ONNX file or a whole bundle to TensorRT engines: profiles, cache, checks and sidecars."""
