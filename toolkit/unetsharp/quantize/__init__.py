"""From a float ONNX to INT8: patches to calibrate on, what is lost on others, layers given back to float."""
