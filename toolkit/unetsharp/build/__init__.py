"""From ONNX to a bundle: engines built by TensorRT or TensorRT-RTX, kept with the ONNX and a manifest of hashes."""
