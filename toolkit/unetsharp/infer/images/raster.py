"""PNG and JPEG, by Pillow."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from unetsharp.infer.images.picture import Header, Picture, check_size, to_rgb
from unetsharp_engines.errors import InputError

__all__ = ["probe", "read"]

_MODES = {"1": "L", "L": "L", "LA": "LA", "RGB": "RGB", "RGBA": "RGBA", "P": "RGBA", "PA": "RGBA", "La": "LA"}
"""Pillow mode of the file → the mode its samples are taken in."""

_PNG_DEPTH_AT = 24
"""Offset of a PNG's bit depth: Pillow turns 16-bit colour into 8 bits without a word."""

_UPRIGHT = 1
_ORIENTATION_TAG = 0x0112


def probe(path: Path) -> Header:
    """Size as displayed: orientations 5 to 8 of EXIF swap width and height."""
    with _opened(path) as image:
        width, height = image.size
        if image.getexif().get(_ORIENTATION_TAG, _UPRIGHT) >= 5:
            width, height = height, width
        return Header(height, width)


def read(path: Path) -> Picture:
    """Decode, turn upright as EXIF says, to RGB. InputError for 16-bit and CMYK pictures."""
    with _opened(path) as image:
        turned = image.getexif().get(_ORIENTATION_TAG, _UPRIGHT) != _UPRIGHT
        upright = ImageOps.exif_transpose(image)
        pixels, notes = to_rgb(np.asarray(upright.convert(_MODES[image.mode])))
    if turned:
        notes += ("it was turned upright as its EXIF orientation says; coordinates are those of the upright picture",)
    return Picture(pixels, notes=notes)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        image = Image.open(path, formats=("PNG", "JPEG"))
    except Image.DecompressionBombError as error:  # Pillow's limit, 179 million pixels, lies beyond ours
        raise InputError(f"too large for one picture ({error}); cut it") from error
    with image:
        width, height = image.size
        check_size(height, width)
        _check_mode(path, image)
        yield image


def _check_mode(path: Path, image: Image.Image) -> None:
    if image.mode not in _MODES or (image.format == "PNG" and _png_depth(path) == 16):
        raise InputError(f"its samples are not 8-bit grey or RGB (Pillow mode {image.mode}); save it as 8-bit RGB")


def _png_depth(path: Path) -> int:
    with path.open("rb") as file:
        return file.read(_PNG_DEPTH_AT + 1)[_PNG_DEPTH_AT]
