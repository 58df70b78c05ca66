"""How weights are made: losses, optimizers, the epoch loop, checkpoints, and what there is to watch. Needs torch."""
