"""How good a prediction is, in numpy: pixels by class, PanNuke's panoptic quality, detection."""
