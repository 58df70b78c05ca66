"""A GPU of this process, held by its primary context: the one that PyTorch and TensorRT use too."""

import functools
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from unetsharp_engines.errors import MissingCapabilityError

__all__ = ["Device", "DeviceFacts", "open_device"]

_INSTALL = "pip install 'unetsharp[gpu]'"
_NEEDED = "engines run on an NVIDIA GPU"


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """What a GPU is made of, as its driver tells."""

    capability: str
    """Compute capability, e.g. ``9.0``."""
    multiprocessors: int
    clock_hz: float
    """Highest of the multiprocessors."""
    memory_clock_hz: float
    bus_bits: int
    """Width of the memory's bus."""


class Device:
    """A GPU. Every call that reaches CUDA is made within `entered`, in whatever thread.

    PyCUDA keeps a stack of contexts for each thread, and frees only what belongs to the stack's top.
    """

    def __init__(self, cuda: Any, index: int) -> None:
        """Retain the primary context of GPU ``index``; ``cuda`` is ``pycuda.driver``, initialized."""
        self.cuda = cuda
        """``pycuda.driver``."""
        self._pid = os.getpid()
        self._device = cuda.Device(index)
        self._context = self._device.retain_primary_context()
        self.name: str = self._device.name()
        """What NVIDIA calls it."""
        self.arch: str = "sm_{}{}".format(*self._device.compute_capability())
        """Its compute capability as compilers name it: ``sm_90``."""

    def facts(self) -> DeviceFacts:
        """What it is made of."""
        names = self.cuda.device_attribute
        return DeviceFacts(
            capability="{}.{}".format(*self._device.compute_capability()),
            multiprocessors=self._device.get_attribute(names.MULTIPROCESSOR_COUNT),
            clock_hz=1e3 * self._device.get_attribute(names.CLOCK_RATE),
            memory_clock_hz=1e3 * self._device.get_attribute(names.MEMORY_CLOCK_RATE),
            bus_bits=self._device.get_attribute(names.GLOBAL_MEMORY_BUS_WIDTH),
        )

    @property
    def is_of_this_process(self) -> bool:
        """False in a forked child, where nothing of CUDA may be touched."""
        return os.getpid() == self._pid

    def check_process(self) -> None:
        """Raise MissingCapabilityError in a child that was forked after the GPU was opened: CUDA survives no fork."""
        if not self.is_of_this_process:
            raise MissingCapabilityError(
                f"process {os.getpid()} was forked from {self._pid} after that had opened the GPU, and CUDA survives "
                "no fork: open networks in the children alone, or start them by multiprocessing's 'spawn'"
            )

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The GPU's context is this thread's while the block runs; what was before is again afterwards.

        Raises as `check_process` does.
        """
        self.check_process()
        self._context.push()
        try:
            yield
        finally:
            self.cuda.Context.pop()

    def free_bytes(self) -> int:
        """Memory that is free now; within `entered`."""
        free, _ = self.cuda.mem_get_info()
        return int(free)


def open_device() -> Device:
    """The first GPU that the driver shows this process, held until the process ends.

    Raises MissingCapabilityError where PyCUDA, cuda.bindings, a driver or the GPU is missing, and as
    `Device.check_process` does.
    """
    device = _opened()
    device.check_process()
    return device


@functools.cache
def _opened() -> Device:
    return Device(_driver(), 0)


def _driver() -> Any:
    """``pycuda.driver``, initialized, with a GPU to show."""
    try:
        cuda = importlib.import_module("pycuda.driver")
        importlib.import_module("cuda.bindings.driver")
    except ModuleNotFoundError as error:
        needed = f"engines run through PyCUDA and cuda-bindings, and {error.name} is missing"
        raise MissingCapabilityError(f"{needed}: {_INSTALL}") from error
    except ImportError as error:  # PyCUDA is linked with the driver's library
        raise MissingCapabilityError(f"{_NEEDED}, and its driver does not load here ({error})") from error
    try:
        cuda.init()
        count = cuda.Device.count()
    except cuda.Error as error:
        raise MissingCapabilityError(f"{_NEEDED}, and CUDA finds none here ({error})") from error
    if count == 0:
        raise MissingCapabilityError(f"{_NEEDED}, and CUDA finds none here")
    return cuda
