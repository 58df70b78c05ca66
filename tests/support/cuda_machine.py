"""Where the CUDA kernels are tried: on the CPU, emulated, or on a GPU. Both hold buffers at addresses."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from support.cuda_emulator import emulated_deep_kernels, emulated_kernels
from unetsharp_engines.cuda.deep import DeepKernels, program
from unetsharp_engines.cuda.kernels import Kernels
from unetsharp_engines.errors import MissingCapabilityError


class Machine:
    """The emulator: memory is the host's, and a launch has run when it returns."""

    stream: Any = None

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels
        self._held: list[Any] = []

    def deep_kernels(self) -> DeepKernels:
        """The kernels of the deep convolutions."""
        return emulated_deep_kernels()

    def empty(self, size: int) -> int:
        """Memory of ``size`` bytes, aligned to 16, every one 0xFF so that what is not written shows."""
        memory = np.full(size + 16, 0xFF, np.uint8)
        self._held.append(memory)
        return (memory.ctypes.data + 15) // 16 * 16

    def holding(self, array: npt.NDArray[Any]) -> int:
        """Memory with the array's bytes."""
        address, packed = self.empty(array.nbytes), np.ascontiguousarray(array)
        ctypes.memmove(address, packed.ctypes.data, array.nbytes)
        return address

    def fetch(self, address: int, shape: tuple[int, ...], kind: npt.DTypeLike) -> npt.NDArray[Any]:
        """What memory holds after all launches."""
        array = np.empty(shape, kind)
        ctypes.memmove(array.ctypes.data, address, array.nbytes)
        return array


class GpuMachine(Machine):
    """A GPU, its context entered."""

    def __init__(self, cuda: Any, kernels: Kernels) -> None:
        super().__init__(kernels)
        self._cuda = cuda
        self.stream = cuda.Stream(flags=1)

    def deep_kernels(self) -> DeepKernels:
        from unetsharp_engines.cuda.compiling import compile_kernels

        arch = "sm_{}{}".format(*self._cuda.Context.get_device().compute_capability())
        return DeepKernels(self._cuda.module_from_buffer(compile_kernels(arch, program()).cubin))

    def empty(self, size: int) -> int:
        memory = self._cuda.mem_alloc(size)
        self._cuda.memset_d8(memory, 0xFF, size)
        self._cuda.Context.synchronize()  # it was set on another stream than the kernels'
        self._held.append(memory)
        return int(memory)

    def holding(self, array: npt.NDArray[Any]) -> int:
        address = self.empty(array.nbytes)
        self._cuda.memcpy_htod(address, np.ascontiguousarray(array))
        self._cuda.Context.synchronize()
        return address

    def fetch(self, address: int, shape: tuple[int, ...], kind: npt.DTypeLike) -> npt.NDArray[Any]:
        self.stream.synchronize()
        array = np.empty(shape, kind)
        self._cuda.memcpy_dtoh(array, address)
        return array


@contextmanager
def machine_called(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """``emulated`` or ``gpu``. Skips the test where that is not at hand."""
    if name == "emulated":
        yield Machine(emulated_kernels(monkeypatch))
        return
    from unetsharp_engines.cuda.compiling import compile_kernels
    from unetsharp_engines.cuda.device import open_device

    try:
        device = open_device()
    except MissingCapabilityError as error:
        pytest.skip(str(error))
    with device.entered():
        module = device.cuda.module_from_buffer(compile_kernels(device.arch).cubin)
        yield GpuMachine(device.cuda, Kernels(module))
