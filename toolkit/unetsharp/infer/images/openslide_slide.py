"""Slides in scanners' own formats (MRXS, NDPI, SCN, VMS, BIF, DICOM), by OpenSlide: what the extra ``wsi`` is for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from unetsharp.infer.images.picture import plausible_mpp
from unetsharp.infer.images.slide import Slide
from unetsharp_engines.errors import InputError, MissingCapabilityError

__all__ = ["OpenSlideSlide"]

_PAPER = (255, 255, 255)
"""What is laid under pixels that were not scanned: the colour of an empty slide."""


class OpenSlideSlide(Slide):
    """A slide that OpenSlide reads.

    Where the file says which part of its canvas was scanned, that part is the slide, as it is in QuPath.
    """

    def __init__(self, path: Path) -> None:
        """Open ``path``. InputError where OpenSlide cannot, MissingCapabilityError where it is not installed."""
        openslide = _openslide(path)
        if openslide.OpenSlide.detect_format(path) is None:
            raise InputError(
                f"{path}: no slide that OpenSlide {openslide.__library_version__} reads; "
                "export it as SVS, OME-TIFF or another tiled TIFF"
            )
        try:
            self._slide: Any = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            raise InputError(f"{path}: damaged or incomplete ({error}); copy it again, with all its files") from error
        self._error: type[Exception] = openslide.OpenSlideError
        properties: Mapping[str, str] = self._slide.properties
        self._top, self._left, height, width = _scanned(properties, self._slide.dimensions)
        levels = tuple((max(1, int(height / d)), max(1, int(width / d))) for d in self._slide.level_downsamples)
        super().__init__(path, levels, _mpp(properties))

    def close(self) -> None:
        """Close the file."""
        self._slide.close()

    def _read(self, top: int, left: int, height: int, width: int, level: int) -> npt.NDArray[np.uint8]:
        downsample = self._slide.level_downsamples[level]
        corner = (self._left + round(left * downsample), self._top + round(top * downsample))
        try:
            region = self._slide.read_region(corner, level, (width, height))
        except self._error as error:
            raise ValueError(str(error)) from error
        picture = Image.new("RGB", region.size, _PAPER)
        picture.paste(region, mask=region.getchannel("A"))
        return np.asarray(picture)


def _openslide(path: Path) -> Any:
    try:
        import openslide
    except (ImportError, OSError) as error:  # OSError: openslide-python without OpenSlide's library
        raise MissingCapabilityError(
            f"{path}: OpenSlide is what reads this slide, and is not here: pip install 'unetsharp[wsi]'"
        ) from error
    return openslide


def _scanned(properties: Mapping[str, str], dimensions: tuple[int, int]) -> tuple[int, int, int, int]:
    """Top, left, height and width of what was scanned; of all where the file does not say."""
    bounds = [properties.get(f"openslide.bounds-{name}") for name in ("y", "x", "height", "width")]
    top, left, height, width = (0, 0, *reversed(dimensions)) if None in bounds else (int(b) for b in bounds if b)
    return top, left, height, width


def _mpp(properties: Mapping[str, str]) -> float | None:
    x, y = (float(properties.get(f"openslide.mpp-{axis}", "nan")) for axis in "xy")
    return plausible_mpp(x, y)
