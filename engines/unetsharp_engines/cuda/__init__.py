"""CUDA: kernels for what surrounds the network, and the runtime that chains them so that no tile leaves the GPU."""
