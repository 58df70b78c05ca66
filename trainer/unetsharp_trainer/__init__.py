"""What makes weights: the network, PanNuke, losses, metrics, the training loop. Torch is imported where it runs."""
