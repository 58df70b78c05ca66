"""Data-parallel training under ``torchrun``: who am I, and sums over everyone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed, nn

__all__ = ["World", "joined"]


CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """This process among those of one ``torchrun``; alone it is rank 0 of 1."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the first one's buffers: each has gathered BatchNorm statistics from its own batches."""
        if self.size > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)

    def total(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Sum of ``values`` over all processes; counts below 2⁵³ add up exactly, in any order."""
        if self.size == 1:
            return values
        tensor = torch.from_numpy(values.astype(np.float64)).to(self.device)
        distributed.all_reduce(tensor)
        return tensor.cpu().numpy()


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Join ``torchrun``'s processes for the block's duration (NCCL on GPUs, gloo on CPUs), or go alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device=device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(distributed.get_rank(), size, device)
    finally:
        distributed.destroy_process_group()
