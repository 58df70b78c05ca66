"""Arrays saved by numpy: one uint8 picture a file. Pickled objects are refused, so reading runs no code."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from unetsharp.infer.images.picture import Header, Picture, check_size, to_rgb
from unetsharp_engines.errors import InputError

__all__ = ["probe", "read"]


def probe(path: Path) -> Header:
    """Size from the array's header."""
    height, width = _open(path).shape[:2]
    return Header(height, width)


def read(path: Path) -> Picture:
    """uint8 of shape (H, W), (H, W, 3) or (H, W, 4); InputError for others."""
    pixels, notes = to_rgb(np.array(_open(path)))
    return Picture(pixels, notes=notes)


def _open(path: Path) -> npt.NDArray[np.uint8]:
    array: npt.NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim not in (2, 3):
        raise InputError(f"its shape is {array.shape}; one picture has shape (height, width, 3)")
    check_size(*array.shape[:2])
    return array
