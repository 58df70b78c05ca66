"""The constants the kernels share with the CPU reference, written as a CUDA header: one truth for both."""

import math
from collections.abc import Iterable

import numpy as np

from unetsharp_engines.contract import BYTES_TO_UNIT, CLASSES
from unetsharp_engines.stain import StainStatus, estimation, transform
from unetsharp_engines.stain.target import DENSITY, TARGET_MAX_CONCENTRATIONS, TARGET_STAINS, WHITE

__all__ = [
    "APPLY_PIXELS",
    "APPLY_THREADS",
    "DEEP_LANES",
    "DEEP_ROWS",
    "DEEP_THREADS",
    "DENSITY_CENTRE",
    "DENSITY_STEP",
    "ESTIMATE_CHUNK",
    "ESTIMATE_THREADS",
    "FINISH_ROWS",
    "GROUP_BYTES",
    "MAX_PIXELS",
    "PIXEL_BLOCK",
    "STATUSES",
    "WHOLE_DENSITY",
    "constants_header",
]

STATUSES: tuple[StainStatus, ...] = tuple(StainStatus)
"""What the whole numbers in a status array mean."""

MAX_PIXELS: int = 1 << 24
"""Largest group: at this many pixels of the most extreme densities the sums of products still fit 64 bits."""

DENSITY_STEP: float = 2.0**-18
"""Unit, in optical density, of the whole numbers whose sums make the moments."""

DENSITY_CENTRE: float = float(np.round((DENSITY.max() + estimation.MIN_TISSUE_DENSITY) / 2, 3))
"""Density whose whole number is 0: the middle of what tissue can have, so that products stay small."""

WHOLE_DENSITY = np.rint((DENSITY - DENSITY_CENTRE) / DENSITY_STEP).astype(np.int32)
"""int32 (256,): density of each level in steps from the centre."""

GROUP_BYTES: int = 16608
"""Workspace of one group; the kernels assert it."""


ESTIMATE_THREADS: int = 256
"""Threads in a block of the estimating kernels."""

ESTIMATE_CHUNK: int = 16
"""Pixels that one of them reads at a time."""

APPLY_THREADS: int = 128
APPLY_PIXELS: int = 8
"""Pixels a thread of the applying kernels normalizes."""

PIXEL_BLOCK: tuple[int, int, int] = (32, 4, 1)
"""Threads in a block of the finishing kernels, along columns and rows."""

FINISH_ROWS: int = 2
"""Low-resolution pixels, one below the other, that a thread of them finishes: neighbours share what they read."""

DEEP_THREADS: int = 128
"""Threads in a block of the deep convolutions' kernels."""

DEEP_ROWS: int = 4
"""Low-resolution rows that one of them walks down; it reads two more, above and below."""

DEEP_LANES: int = 4
"""Channels of float16 that one of them takes at once where channels lie side by side: 8 bytes."""


def constants_header() -> str:
    """The header ``constants.cuh``."""
    integers = {
        "GROUP_BYTES": GROUP_BYTES,
        "DARKEST_GLASS": estimation.DARKEST_GLASS,
        "CHANNELS": len(CLASSES),
        "ESTIMATE_THREADS": ESTIMATE_THREADS,
        "ESTIMATE_CHUNK": ESTIMATE_CHUNK,
        "APPLY_THREADS": APPLY_THREADS,
        "APPLY_PIXELS": APPLY_PIXELS,
        "PIXEL_THREADS": math.prod(PIXEL_BLOCK),
        "FINISH_ROWS": FINISH_ROWS,
        "DEEP_THREADS": DEEP_THREADS,
        "DEEP_ROWS": DEEP_ROWS,
        "DEEP_LANES": DEEP_LANES,
        "LABEL_OF_CHANNEL_0": CLASSES[0].label,
        "LABELS": sum(c.label << (4 * c.channel) for c in CLASSES),
    } | {status.name: value for value, status in enumerate(STATUSES)}
    doubles = {
        "DENSITY_STEP": DENSITY_STEP,
        "DENSITY_CENTRE": DENSITY_CENTRE,
        "MIN_TISSUE_FRACTION": estimation.MIN_TISSUE_FRACTION,
        "MIN_PLANARITY": estimation.MIN_PLANARITY,
        "MIN_VARIANCE": estimation.MIN_VARIANCE,
        "MIN_IN_PLANE_MEAN": estimation.MIN_IN_PLANE_MEAN,
        "TAN_MIN_STAIN_ANGLE": np.tan(estimation.MIN_STAIN_ANGLE),
        "MIN_MAX_CONCENTRATION": estimation.MIN_MAX_CONCENTRATION,
        "LOW_FRACTION": 0.01 * estimation.PERCENTILE,
        "HIGH_FRACTION": 0.01 * (100.0 - estimation.PERCENTILE),
    }
    floats = {
        "WHITE": WHITE,
        "LOG2_CLIP": transform.LOG2_CLIP,
        "BYTES_TO_UNIT": BYTES_TO_UNIT,
        "GLASS_OFFSET": np.log2(WHITE) + transform.ROUND_UP,
    }
    return "\n".join(
        [
            "#pragma once",
            *(f"constexpr unsigned {name} = {value}u;" for name, value in integers.items()),
            *(f"constexpr double {name} = {float(value)!r};" for name, value in doubles.items()),
            *(f"constexpr float {name} = {float(value)!r};" for name, value in floats.items()),
            _table("int", "WHOLE_DENSITY", WHOLE_DENSITY.tolist()),
            _table("float", "DENSITY", DENSITY.astype(np.float32).astype(float).tolist()),
            _table("double", "TARGET", (TARGET_STAINS * TARGET_MAX_CONCENTRATIONS).ravel().tolist()),
            "",
        ]
    )


def _table(kind: str, name: str, values: Iterable[float]) -> str:
    return f"__device__ const {kind} {name}[] = {{{', '.join(map(repr, values))}}};"
