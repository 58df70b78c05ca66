"""Slides for tests: small TIFFs in tiles."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from unetsharp.infer.images import Slide, open_slide

NOISE = np.random.default_rng(5).integers(0, 256, (230, 310, 3), dtype=np.uint8)


def save_slide(path: Path, picture: npt.NDArray[np.uint8], *, mpp: float | None = None, **options: Any) -> Path:
    """A pyramid of two levels in tiles, as bio-formats and vips write them."""
    stated = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    common = {"photometric": "rgb", "tile": (64, 48), **stated, **options}
    with tifffile.TiffWriter(path) as file:
        file.write(picture, subifds=1, **common)
        file.write(picture[::2, ::2], subfiletype=1, **common)
    return path


def opened(path: Path) -> Slide:
    slide = open_slide(path)
    assert slide is not None
    return slide
