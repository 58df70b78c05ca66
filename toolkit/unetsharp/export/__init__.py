"""From weights to ONNX: exported, checked against PyTorch, in the precision that is to be computed in."""
