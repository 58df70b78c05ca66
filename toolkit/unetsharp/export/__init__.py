"""From weights to ONNX: tracing, precision, comparison with PyTorch, and PyTorch itself as a runtime."""
