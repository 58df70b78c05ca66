"""What stain normalization takes for pixels, and how it goes through many of them."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from unetsharp_engines.errors import InputError

__all__ = ["blocks", "check_rgb"]

BLOCK: int = 1 << 13
"""Pixels worked on at a time: their float64 channels, 192 KiB, stay in a core's cache."""


def check_rgb(image: npt.NDArray[np.uint8]) -> None:
    """Raise InputError unless ``image`` is uint8 with three channels last."""
    if image.dtype != np.uint8 or image.ndim == 0 or image.shape[-1] != 3:
        raise InputError(
            f"stain normalization got a {image.dtype} array of shape {image.shape}; "
            "it takes uint8 RGB, channels last: shape (..., 3)"
        )


def blocks(pixels: int) -> Iterator[slice]:
    """Slices of at most `BLOCK` that together are ``range(pixels)``."""
    for start in range(0, pixels, BLOCK):
        yield slice(start, start + BLOCK)
