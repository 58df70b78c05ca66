"""The most memory a run has taken."""

import resource

import torch

__all__ = ["peak_memory"]


def peak_memory(device: torch.device) -> int:
    """Bytes: on a GPU what PyTorch allocated at most, on the CPU the process's largest resident size (Linux)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
