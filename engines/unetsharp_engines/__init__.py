"""What runs the network: the contract, stain normalization, runtimes. Needs numpy; imports no torch, CUDA or TensorRT."""

__version__ = "0.1.0"
