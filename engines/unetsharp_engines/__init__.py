"""What runs the network: contract, stain normalization, runtimes, graph rewrites, INT8. Needs no torch and no GPU."""

__version__ = "0.1.0"
