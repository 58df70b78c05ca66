"""Memory on the GPU and pinned memory beside it, freed together."""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Memory"]


class Memory:
    """Allocations of one owner. Call it within `Device.entered`."""

    def __init__(self, cuda: Any) -> None:
        """``cuda`` is ``pycuda.driver``, whose MemoryError each allocation may raise."""
        self._cuda = cuda
        self._held: list[Any] = []

    def on_device(self, size: int) -> int:
        """Address of ``size`` new bytes on the GPU, aligned to 256."""
        allocation = self._cuda.mem_alloc(max(1, size))
        self._held.append(allocation)
        return int(allocation)

    def pinned(self, size: int) -> npt.NDArray[np.uint8]:
        """``size`` new bytes of the host, zero and page-locked: the GPU copies to and from them by itself."""
        array: npt.NDArray[np.uint8] = self._cuda.pagelocked_empty((max(1, size),), np.uint8)
        self._held.append(array.base)
        array[:] = 0
        return array

    def close(self) -> None:
        """Free all of it. Nothing may still use it."""
        while self._held:
            self._held.pop().free()
