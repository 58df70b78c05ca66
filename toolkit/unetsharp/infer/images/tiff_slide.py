"""Slides that are TIFFs in tiles (Aperio SVS, generic and OME pyramids), by tifffile: only tiles asked for are read."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
from tifffile import COMPRESSION, PHOTOMETRIC, PLANARCONFIG, TiffFile, TiffFrame, TiffPage, TiffPageSeries

from unetsharp.infer.images.openslide_slide import OpenSlideSlide
from unetsharp.infer.images.slide import Slide
from unetsharp.infer.images.tiff import first_picture, mpp_of, open_tiff, size_of

__all__ = ["TiffSlide", "open_tiff_slide"]

_GLASS = 255
"""Level of tiles that the scanner left out."""


def open_tiff_slide(path: Path) -> Slide | None:
    """Open a TIFF whose first picture is RGB in tiles; None for others, which are to be read whole.

    MissingCapabilityError for Aperio's older JPEG 2000 without OpenSlide: tifffile leaves its colours as stored, YCbCr.
    """
    with ExitStack() as closing:
        file = closing.enter_context(open_tiff(path))
        page = first_picture(file).keyframe
        if page.compression == COMPRESSION.APERIO_JP2000_YCBC:
            return OpenSlideSlide(path)
        if not _is_readable(page):
            return None
        slide = TiffSlide(path, file)
        closing.pop_all()
        return slide


def _is_readable(page: TiffPage) -> bool:
    return (
        page.is_tiled
        and page.planarconfig == PLANARCONFIG.CONTIG
        and page.photometric in (PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR)
        and page.samplesperpixel == 3
        and page.dtype == np.uint8
    )


class TiffSlide(Slide):
    """A slide that `open_tiff_slide` opens."""

    def __init__(self, path: Path, file: TiffFile) -> None:
        self._file = file
        levels = [level for level in first_picture(file).levels if _is_readable(level.keyframe)]
        self._pages = [(level.keyframe, _page_of(level)) for level in levels]
        super().__init__(path, tuple(size_of(level) for level in levels), mpp_of(file))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self, top: int, left: int, height: int, width: int, level: int) -> npt.NDArray[np.uint8]:
        region = np.full((height, width, 3), _GLASS, np.uint8)
        for tile, row, column in self._tiles(level, (top, left, height, width)):
            y, x = row - top, column - left
            shown = tile[max(0, -y) : height - y, max(0, -x) : width - x]
            region[max(0, y) :, max(0, x) :][: shown.shape[0], : shown.shape[1]] = shown
        return region

    def _tiles(self, level: int, region: tuple[int, int, int, int]) -> Iterator[tuple[npt.NDArray[np.uint8], int, int]]:
        """The tiles under a region as far as the file has them, uint8 [h, w, 3], and where each begins."""
        layout, page = self._pages[level]
        indices = _under(layout, *region)
        offsets, counts = ([values[i] for i in indices] for values in (page.dataoffsets, page.databytecounts))
        tables = {} if page.jpegtables is None else {"jpegtables": page.jpegtables}
        segments = cast("Iterator[tuple[bytes | None, int]]", self._file.filehandle.read_segments(offsets, counts))
        for data, place in segments:
            tile, (_, _, row, column, _), _ = layout.decode(data, indices[place], **tables)
            if tile is not None:
                yield tile[0], row, column


def _page_of(level: TiffPageSeries) -> TiffPage | TiffFrame:
    """Where the level's tiles lie; ValueError unless all that its size takes are listed: bytes could claim any size."""
    layout, page = level.keyframe, level.pages[0]
    if page is None:
        raise ValueError("a resolution that it lists is missing")
    needed = -(-layout.imagelength // layout.tilelength) * -(-layout.imagewidth // layout.tilewidth)
    listed = min(len(page.dataoffsets), len(page.databytecounts))
    if listed < needed:
        size = f"{layout.imagewidth} × {layout.imagelength}"
        raise ValueError(f"{size} pixels take {needed} tiles, and it lists {listed}")
    return page


def _under(page: TiffPage, top: int, left: int, height: int, width: int) -> list[int]:
    """Numbers of the tiles that a region touches."""
    across = -(-page.imagewidth // page.tilewidth)
    rows = range(top // page.tilelength, -(-(top + height) // page.tilelength))
    columns = range(left // page.tilewidth, -(-(left + width) // page.tilewidth))
    return [row * across + column for row in rows for column in columns]
