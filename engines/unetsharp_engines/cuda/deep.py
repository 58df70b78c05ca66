"""The kernel of the deep convolutions: from taps at low resolution to what stands behind Mish and BatchNorm.

Its truth is `reference.deep`. It runs inside engines, as the plugin `unetsharp.build.plugin` gives it to TensorRT;
`DeepKernels` launches it for tests and benchmarks.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from unetsharp_engines.cuda.constants import DEEP_LANES, DEEP_ROWS, DEEP_THREADS

__all__ = ["DEEP_KERNELS", "FACTORS", "DeepKernel", "DeepKernels", "program"]

FACTORS: tuple[int, ...] = (2, 4, 8)
"""Upsampling, in rows and in columns, that there are kernels for."""

_HWC8 = 8


@dataclass(frozen=True, kw_only=True)
class DeepKernel:
    """One kernel. Its grid is `threads` over `DEEP_THREADS`, rounded up, by images; its block `DEEP_THREADS`."""

    factor: int
    """One of `FACTORS`."""
    half: bool
    """Whether taps and output are float16, else float32."""
    channels_last: bool
    """Whether their channels lie side by side (TensorRT's HWC8), else each in a plane; takes float16 alone."""

    ARGUMENTS = "PPPiiiP"
    """As `struct` and PyCUDA write them: taps, scale, shift, channels of the output, low height and width, output."""

    @property
    def name(self) -> str:
        """As the machine code has it."""
        return f"deep_{self._layout}_{self._kind}_{self.factor}"

    @property
    def source(self) -> str:
        """The line of a `program` that makes it."""
        real = "half_t" if self.half else "float"
        return f"DEEP({self._layout}, {real}, {self._kind}, {self.factor})"

    @staticmethod
    def takes_channels_last(channels: int) -> bool:
        """Whether so many channels can lie side by side: TensorRT's format fills them up to a multiple of eight."""
        return channels % _HWC8 == 0

    def threads(self, channels: Any, strips: Any, width: Any) -> Any:
        """Threads an image: whole numbers give one, TensorRT's expressions of sides an expression.

        ``strips`` is the low height by `DEEP_ROWS`, rounded up.
        """
        if self.channels_last:
            return channels // DEEP_LANES * strips * width * self.factor
        return channels * strips * width

    @property
    def _layout(self) -> str:
        return "channels_last" if self.channels_last else "planes"

    @property
    def _kind(self) -> str:
        return "half" if self.half else "float"


DEEP_KERNELS: tuple[DeepKernel, ...] = tuple(
    DeepKernel(factor=factor, half=half, channels_last=last)
    for factor, half, last in itertools.product(FACTORS, (True, False), (False, True))
    if half or not last
)
"""All there are."""


def program(kernels: Iterable[DeepKernel] = DEEP_KERNELS) -> str:
    """Source of a program of ``kernels``, for `compiling`."""
    return "\n".join(['#include "deep.cuh"', *(kernel.source for kernel in kernels), ""])


class DeepKernels:
    """The kernels of a loaded ``pycuda.driver.Module`` of `program`, in the context that is current meanwhile."""

    def __init__(self, module: Any) -> None:
        self._functions = {kernel: module.get_function(kernel.name) for kernel in DEEP_KERNELS}
        for function in self._functions.values():
            function.prepare(DeepKernel.ARGUMENTS)

    def run(
        self,
        kernel: DeepKernel,
        taps: int,
        scale: int,
        shift: int,
        out: int,
        *,
        n: int,
        channels: int,
        height: int,
        width: int,
        stream: Any,
    ) -> None:
        """Enqueue ``kernel`` on device pointers, aligned to 16 bytes.

        ``taps`` are [n, 9·channels, height, width], tap-major, and ``out`` [n, channels, height·factor, width·factor],
        both with channels last if the kernel has them so; ``scale`` and ``shift`` float32 [channels]. ValueError for
        channels that it does not take.
        """
        if kernel.channels_last and not kernel.takes_channels_last(channels):
            raise ValueError(f"{channels} channels; {kernel.name} takes a multiple of {_HWC8}")
        strips = -(-height // DEEP_ROWS)
        blocks = -(-kernel.threads(channels, strips, width) // DEEP_THREADS)
        self._functions[kernel].prepared_async_call(
            (blocks, n), (DEEP_THREADS, 1, 1), stream, taps, scale, shift, channels, height, width, out
        )
