"""The class of every pixel, as an indexed picture that looks like what it says."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from unetsharp.infer.images.picture import MAX_PIXELS
from unetsharp_engines.contract import CLASSES
from unetsharp_engines.files import replacing

if TYPE_CHECKING:
    from unetsharp.infer.segmentation import Found

__all__ = ["suffix", "write"]

_TILE = (512, 512)
_LEVELS = 256


def suffix(found: "Found") -> str:
    """``.png``, or ``.tif`` for what is larger than programs take a PNG to be."""
    height, width = found.size
    return ".png" if height * width <= MAX_PIXELS else ".tif"


def write(found: "Found", path: Path) -> None:
    """Write the label image at full resolution: index 0 background, 1 to 5 nuclei, in the classes' colours.

    8 bits a pixel, which every reader takes; Pillow and tifffile give the labels, readers that expand palettes the
    colours. A path that ends in ``.tif`` becomes a TIFF in tiles, written tile by tile, with its resolution.
    ValueError where the classes of a slide were not kept.
    """
    if found.classes is None:
        raise ValueError("the slide's classes were not kept")
    with replacing(path) as temporary:
        if path.suffix == ".tif":
            _write_tiff(found.classes, found.mpp, temporary)
        else:
            _write_png(found.classes, temporary)


def _colors() -> list[tuple[int, int, int]]:
    return [c.color for c in sorted(CLASSES, key=lambda c: c.label)]


def _write_png(classes: npt.NDArray[np.uint8], path: Path) -> None:
    image = Image.fromarray(classes)
    image.putpalette([level for color in _colors() for level in color])
    image.save(path, format="PNG", bits=8)


def _write_tiff(classes: npt.NDArray[np.uint8], mpp: float, path: Path) -> None:
    import tifffile

    colors = np.zeros((3, _LEVELS), np.uint16)
    colors[:, : len(CLASSES)] = np.transpose(_colors())
    per_cm = 1e4 / mpp
    tifffile.imwrite(
        path,
        classes,
        photometric="palette",
        colormap=colors * 257,  # 8 bits to TIFF's 16
        tile=_TILE,
        compression="zlib",
        resolution=(per_cm, per_cm),
        resolutionunit="CENTIMETER",
    )
