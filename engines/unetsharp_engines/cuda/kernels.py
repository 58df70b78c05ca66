"""The kernels as functions: each enqueues its launches on a stream and returns; nothing allocates, nothing waits.

All take device pointers as whole numbers and may be captured into a CUDA graph. Stain transforms are float32 rows of
`TRANSFORM`, as `packed` makes them.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from unetsharp_engines.cuda import constants
from unetsharp_engines.stain import StainTransform
from unetsharp_engines.stain.target import WHITE

__all__ = ["SIGNATURES", "TRANSFORM", "Kernels", "packed"]

TRANSFORM: int = 12
"""Numbers of a transform on the device: the matrix row by row, then the offset."""

_PASSES = (
    "stain_moments",
    "stain_angles",
    "stain_angles_fine",
    "stain_concentrations",
    "stain_concentrations_fine",
)


def packed(transform: StainTransform) -> npt.NDArray[np.float32]:
    """A transform as the kernels take it, float32 (12,).

    I' = exp2(A·log2((I + 1) / WHITE) + b') with b' = b + log2(WHITE)·A·1: unstained glass has logarithm 0 there and
    meets no rounding of A.
    """
    offset = transform.offset + np.log2(WHITE) * transform.matrix.sum(axis=1)
    return np.concatenate([transform.matrix.ravel(), offset]).astype(np.float32)


class Kernels:
    """The kernels of a loaded ``pycuda.driver.Module``, in the context that is current while it is made."""

    def __init__(self, module: Any) -> None:
        from pycuda import driver

        self._memset = driver.memset_d32_async
        attributes = driver.device_attribute
        self._blocks = 4 * driver.Context.get_device().get_attribute(attributes.MULTIPROCESSOR_COUNT)
        self._functions = {name: _prepared(module, name, types) for name, types in SIGNATURES.items()}

    @staticmethod
    def workspace_bytes(groups: int) -> int:
        """Size of `estimate`'s workspace, which holds nothing between calls; aligned to 16 bytes."""
        return groups * constants.GROUP_BYTES

    def estimate(
        self,
        tiles: int,
        transforms: int,
        statuses: int,
        workspace: int,
        *,
        groups: int,
        pixels_per_group: int,
        fallback: int,
        stream: Any,
    ) -> None:
        """Estimate the stains of uint8 RGB [groups, pixels, 3], a group being a tile or a slide's region.

        Writes float32 ``transforms`` [groups, 12] and int32 ``statuses`` [groups], indices into `constants.STATUSES`; a
        group that carries no estimate gets the ``fallback``, 12 numbers on the device. ``tiles`` is aligned to 16
        bytes; ValueError unless ``pixels_per_group`` is a multiple of 16 up to 2^24.
        """
        chunk, most = constants.ESTIMATE_CHUNK, constants.MAX_PIXELS
        if pixels_per_group % chunk or not 0 < pixels_per_group <= most:
            raise ValueError(f"{pixels_per_group} pixels a group; it takes a multiple of {chunk} up to {most}")
        self._memset(workspace, 0, self.workspace_bytes(groups) // 4, stream)
        useful = _ceil(pixels_per_group, constants.ESTIMATE_THREADS * chunk)
        grid = (max(1, min(useful, self._blocks // groups)), groups)
        for name in _PASSES:
            self._functions[name].prepared_async_call(
                grid,
                (constants.ESTIMATE_THREADS, 1, 1),
                stream,
                *(tiles, workspace, pixels_per_group, transforms, statuses, fallback),
            )

    def apply(
        self,
        tiles: int,
        transforms: int,
        out: int,
        *,
        n: int,
        height: int,
        width: int,
        shared: bool,
        half: bool,
        stream: Any,
    ) -> None:
        """Normalize uint8 RGB [n, height, width, 3] to the network's input [n, 3, height, width], 0 to 1, whole levels.

        The output is FP16 or FP32 as ``half`` says; ``transforms`` is one row for all if ``shared``, else one a tile.
        Pointers are aligned to 16 bytes; ValueError unless ``height * width`` is a multiple of 16.
        """
        pixels = height * width
        if pixels % constants.ESTIMATE_CHUNK:
            raise ValueError(
                f"a tile of {height} by {width} pixels; it takes a multiple of {constants.ESTIMATE_CHUNK} in all"
            )
        grid = (_ceil(pixels, constants.APPLY_THREADS * constants.APPLY_PIXELS), n)
        self._functions[_typed("stain_apply", half)].prepared_async_call(
            grid, (constants.APPLY_THREADS, 1, 1), stream, tiles, transforms, out, pixels, int(shared)
        )

    def finish(
        self,
        taps: int,
        labels: int,
        *,
        n: int,
        channels: int,
        height: int,
        width: int,
        half: bool,
        margin: int,
        stream: Any,
        confidence: int | None = None,
    ) -> None:
        """From the head's taps [n, channels, height, width] to label images, without ``margin`` pixels on each side.

        ``labels`` is uint8 [n, 2·height - 2·margin, 2·width - 2·margin]; ``confidence``, if wanted, uint8 of the same
        shape: the label's probability, 0 to 255. ``channels`` is at least 54, as `rewrites.tail.HeadTail` says.
        """
        self._per_pixel(
            _typed("finish_labels", half),
            (n, _ceil(height, constants.FINISH_ROWS), width),
            stream,
            *(taps, labels, confidence or 0, channels, height, width, margin),
        )

    def finish_probabilities(
        self, taps: int, out: int, *, n: int, channels: int, height: int, width: int, half: bool, stream: Any
    ) -> None:
        """From the head's taps to float32 probabilities [n, 6, 2·height, 2·width]; ``half`` says what the taps are."""
        self._per_pixel(
            _typed("finish_probabilities", half),
            (n, _ceil(height, constants.FINISH_ROWS), width),
            stream,
            *(taps, out, channels, height, width),
        )

    def labels_of_logits(
        self,
        logits: int,
        labels: int,
        *,
        n: int,
        height: int,
        width: int,
        half: bool,
        margin: int,
        stream: Any,
        confidence: int | None = None,
    ) -> None:
        """From logits [n, 6, height, width] to label images, as `finish`: [n, height - 2·margin, width - 2·margin]."""
        self._per_pixel(
            _typed("labels_of_logits", half),
            (n, height, width),
            stream,
            *(logits, labels, confidence or 0, height, width, margin),
        )

    def probabilities_of_logits(
        self, logits: int, out: int, *, n: int, height: int, width: int, half: bool, stream: Any
    ) -> None:
        """From logits [n, 6, height, width] to float32 probabilities; ``half`` says what the logits are."""
        name = _typed("probabilities_of_logits", half)
        self._per_pixel(name, (n, height, width), stream, logits, out, height, width)

    def _per_pixel(self, name: str, threads: tuple[int, int, int], stream: Any, *arguments: int) -> None:
        n, height, width = threads
        grid = (_ceil(width, constants.PIXEL_BLOCK[0]), _ceil(height, constants.PIXEL_BLOCK[1]), n)
        self._functions[name].prepared_async_call(grid, constants.PIXEL_BLOCK, stream, *arguments)


SIGNATURES = (
    dict.fromkeys(_PASSES, "PPiPPP")
    | dict.fromkeys(("stain_apply_half", "stain_apply_float"), "PPPii")
    | dict.fromkeys(("finish_labels_half", "finish_labels_float"), "PPPiiii")
    | dict.fromkeys(("finish_probabilities_half", "finish_probabilities_float"), "PPiii")
    | dict.fromkeys(("labels_of_logits_half", "labels_of_logits_float"), "PPPiii")
    | dict.fromkeys(("probabilities_of_logits_half", "probabilities_of_logits_float"), "PPii")
)
"""Argument types of every kernel, as `struct` and PyCUDA write them: P a pointer, i an int."""


def _prepared(module: Any, name: str, types: str) -> Any:
    function = module.get_function(name)
    function.prepare(types)
    return function


def _typed(name: str, half: bool) -> str:
    return f"{name}_{'half' if half else 'float'}"


def _ceil(value: int, step: int) -> int:
    return -(-value // step)
