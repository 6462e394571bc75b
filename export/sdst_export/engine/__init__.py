"""One ONNX file or a whole bundle to engines of TensorRT or TensorRT for RTX: profiles, cache, checks, sidecars."""
