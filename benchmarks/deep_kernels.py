"""The deep convolutions' kernels on a GPU: equal to their reference, and how fast. Part of `cuda_kernels.py`.

The six places are those of the paper's configuration at 256². Beside each batch stand a copy of as many bytes and,
where PyTorch sees the GPU, the form in stock operators: two matrix products, Mish, scale and shift. Nothing empties the
GPU's cache between launches, as nothing does in an engine: a large one holds the 15 MB of a single image.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from unetsharp_engines.cuda import reference
from unetsharp_engines.cuda.compiling import compile_kernels
from unetsharp_engines.cuda.deep import DEEP_KERNELS, DeepKernel, DeepKernels, program
from unetsharp_engines.rewrites.taps import tap_matrices

__all__ = ["PLACES", "deep_equivalence", "deep_kernels", "deep_times", "stock_form"]

CHANNELS = 64
PLACES = ((2, 16), (2, 32), (2, 64), (4, 16), (4, 32), (8, 16))
"""Factor and low side of every deep convolution."""
REPEATS = 50


class Gpu(Protocol):
    """What of `cuda_kernels.Gpu` is used."""

    device: Any
    cuda: Any
    stream: Any

    def empty(self, size: int) -> int: ...
    def holding(self, array: npt.NDArray[Any]) -> int: ...
    def fetch(self, address: int, shape: tuple[int, ...], kind: npt.DTypeLike) -> npt.NDArray[Any]: ...
    def free(self) -> None: ...
    def microseconds(self, launch: Callable[[int], None]) -> float: ...


def deep_kernels(gpu: Gpu) -> DeepKernels:
    """Compiled for the GPU and loaded."""
    return DeepKernels(gpu.cuda.module_from_buffer(compile_kernels(gpu.device.arch, program()).cubin))


def deep_equivalence(gpu: Gpu, height: int = 13, width: int = 18, n: int = 3) -> dict[str, float]:
    """By kernel, the largest error of random taps' output against the reference, relative where that exceeds 1."""
    kernels, rng, found = deep_kernels(gpu), np.random.default_rng(0), {}
    for kernel in DEEP_KERNELS:
        taps = rng.normal(scale=2, size=(n, 9 * CHANNELS, height, width)).astype(
            np.float16 if kernel.half else np.float32
        )
        scale, shift = rng.normal(size=(2, CHANNELS)).astype(np.float32)
        wanted = reference.deep(taps, scale, shift, kernel.factor)
        shape: tuple[int, ...] = wanted.shape
        if kernel.channels_last:
            taps, shape = np.ascontiguousarray(taps.transpose(0, 2, 3, 1)), (n, *shape[2:], CHANNELS)
        out = gpu.empty(wanted.size * taps.itemsize)
        sides: dict[str, Any] = {"n": n, "channels": CHANNELS, "height": height, "width": width}
        inputs = [gpu.holding(array) for array in (taps, scale, shift)]
        kernels.run(kernel, inputs[0], inputs[1], inputs[2], out, **sides, stream=gpu.stream)
        seen = gpu.fetch(out, shape, taps.dtype).astype(np.float64)
        seen = seen.transpose(0, 3, 1, 2) if kernel.channels_last else seen
        found[kernel.name] = float((np.abs(seen - wanted) / np.maximum(1.0, np.abs(wanted))).max())
        gpu.free()
    return found


def deep_times(gpu: Gpu, n: int) -> dict[str, dict[str, float]]:
    """Of all six places, FP16, ``n`` images: microseconds of each layout, of a copy, of stock operators."""
    kernels = deep_kernels(gpu)
    moved = sum(2 * n * CHANNELS * side**2 * (9 + factor**2) for factor, side in PLACES)
    places = [(factor, side, *_buffers(gpu, factor, side, n)) for factor, side in PLACES]
    affine = gpu.holding(np.ones(2 * CHANNELS, np.float32))

    def launched(channels_last: bool) -> Callable[[int], None]:
        def launch(_: int) -> None:
            for factor, side, taps, out in places:
                kernel = DeepKernel(factor=factor, half=True, channels_last=channels_last)
                sides = {"n": n, "channels": CHANNELS, "height": side, "width": side}
                kernels.run(kernel, taps, affine, affine, out, **sides, stream=gpu.stream)

        return launch

    buffer = gpu.empty(moved)
    forms = {"planes": launched(False), "channels_last": launched(True)}
    forms["copy_of_as_many_bytes"] = lambda _: gpu.cuda.memcpy_dtod_async(
        buffer, buffer + moved // 2, moved // 2, gpu.stream
    )
    times = {name: gpu.microseconds(form) for name, form in forms.items()}
    gpu.free()
    if _torch_sees_a_gpu():
        times["stock_operators_in_torch"] = _stock_microseconds(n)
    return {name: {"microseconds": t, "gigabytes_per_second": moved / t / 1e3} for name, t in times.items()}


def _buffers(gpu: Gpu, factor: int, side: int, n: int) -> tuple[int, int]:
    taps = np.random.default_rng(side).normal(size=(n, 9 * CHANNELS, side, side)).astype(np.float16)
    return gpu.holding(taps), gpu.empty(2 * n * CHANNELS * (factor * side) ** 2)


def stock_form(taps: Any, scale: Any, shift: Any, factor: int) -> Any:
    """What the kernels do, as ``deep-low-resolution`` and what follows do it: of tensors, taps class by class."""
    import torch

    n, channels, side, _ = taps.shape
    c, matrix = channels // 9, _matrix(side, factor, taps.dtype, taps.device)
    tall = (matrix @ taps.reshape(n, 3 * c, 3 * side, side)).reshape(n, c, 3, factor * side, side).transpose(2, 3)
    summed = tall.reshape(n, c, factor * side, 3 * side) @ matrix.T
    return torch.nn.functional.mish(summed) * scale[:, None, None] + shift[:, None, None]


@functools.cache
def _matrix(side: int, factor: int, kind: Any, device: Any) -> Any:
    import torch

    return torch.from_numpy(np.hstack(list(tap_matrices(side, factor)))).to(device, kind)


def _torch_sees_a_gpu() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def _stock_microseconds(n: int) -> float:
    """All six places, eager but from a CUDA graph."""
    import torch

    half: dict[str, Any] = {"dtype": torch.half, "device": "cuda"}
    affine = torch.ones(CHANNELS, **half)
    runs = [
        functools.partial(stock_form, torch.randn(n, 9 * CHANNELS, side, side, **half), affine, affine, factor)
        for factor, side in PLACES
    ]
    kept = [run() for run in runs]  # before the capture: libraries start
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [run() for run in runs]
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    graph.replay()
    begin.record()
    for _ in range(REPEATS):
        graph.replay()
    end.record()
    end.synchronize()
    del kept
    return float(begin.elapsed_time(end)) * 1e3 / REPEATS
