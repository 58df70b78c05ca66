"""Between a picture's own pixels and the network's: the picture is resampled, results are mapped back."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from unetsharp.infer.box import Box
from unetsharp.infer.images.picture import MAX_PIXELS, MPP_BOUNDS
from unetsharp_engines.contract import LABEL_OF_CHANNEL, MPP
from unetsharp_engines.errors import InputError

__all__ = ["Scale", "check_mpp"]


def check_mpp(mpp: float) -> float:
    """``mpp`` itself; InputError unless it is within `MPP_BOUNDS`."""
    low, high = MPP_BOUNDS
    if not low <= mpp <= high:
        raise InputError(
            f"{mpp:g} µm per pixel is outside {low:g} to {high:g}; a 40× scan has about 0.25, a 20× scan about 0.5"
        )
    return mpp


Read = Callable[[int, int, int, int], npt.NDArray[np.uint8]]
"""Top, left, height and width of a region of a picture → its RGB, uint8 [height, width, 3]."""

_BLOCK: int = 256
"""Pictures are resampled in blocks of this many network pixels, always the same ones: Pillow takes places as float32,
and so whatever part of a slide is asked for, a pixel is the same to the bit."""


@dataclass(frozen=True)
class Scale:
    """A picture's pixel grid beside the network's, which has the same extent and `contract.MPP` µm a pixel.

    The network's grid has a whole number of pixels, so its pixel is `MPP` only to within half a pixel of the
    picture's side: every conversion uses the true ratio, each axis its own. Equal resolutions are the same grid.
    """

    height: int
    width: int
    mpp: float
    """µm per pixel of the picture."""

    @property
    def network_size(self) -> tuple[int, int]:
        """Height and width in network pixels, each at least 1."""
        height, width = (max(1, round(side * self.mpp / MPP)) for side in (self.height, self.width))
        return height, width

    @property
    def picture_per_network(self) -> tuple[float, float]:
        """Picture pixels in a network pixel, (down, across)."""
        height, width = self.network_size
        return self.height / height, self.width / width

    @property
    def network_pixel_area(self) -> float:
        """µm² of one network pixel."""
        down, across = self.picture_per_network
        return down * across * self.mpp**2

    @property
    def _is_same(self) -> bool:
        return self.network_size == (self.height, self.width)

    def to_network(self, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Resample RGB uint8 [H, W, 3] onto the network's grid: bicubic, antialiased where it shrinks (Pillow).

        InputError if that has more than `MAX_PIXELS`.
        """
        height, width = self.network_size
        if height * width > MAX_PIXELS:
            raise InputError(
                f"at {MPP} µm/px the picture has {width} × {height} pixels, more than one picture may have "
                f"({MAX_PIXELS // 10**6} million); cut it, or save it as a tiled TIFF, which is read by parts"
            )
        if self._is_same:
            return picture
        return self.part_to_network(
            lambda top, left, height, width: picture[top : top + height, left : left + width],
            Box(0, 0, height, width),
        )

    def part_to_network(self, read: Read, part: Box) -> npt.NDArray[np.uint8]:
        """``part`` (network pixels) of what `to_network` gives, to the bit, from only what it needs of the picture."""
        if self._is_same:
            return read(part.top, part.left, *part.size)
        rows = [_Block.of(i, self.network_size[0], self.height) for i in _blocks(part.top, part.bottom)]
        columns = [_Block.of(i, self.network_size[1], self.width) for i in _blocks(part.left, part.right)]
        top, left = rows[0].first, columns[0].first
        region = read(top, left, rows[-1].last - top, columns[-1].last - left)
        mosaic = np.concatenate(
            [np.concatenate([_resampled(region, r, c, top, left) for c in columns], 1) for r in rows]
        )
        covered = Box(rows[0].begin, columns[0].begin, rows[-1].end, columns[-1].end)
        return np.ascontiguousarray(mosaic[part.within(covered)])

    def picture_part(self, part: Box) -> Box:
        """The picture's pixels whose centres lie in ``part`` of the network's grid: parts side by side share none."""
        down, across = self.picture_per_network
        top, bottom = (math.ceil(side * down - 0.5) for side in (part.top, part.bottom))
        left, right = (math.ceil(side * across - 0.5) for side in (part.left, part.right))
        return Box(top, left, bottom, right)

    def to_picture_labels(
        self, probabilities_CHW: npt.NDArray[np.float16], *, seen: Box | None = None, wanted: Box | None = None
    ) -> npt.NDArray[np.uint8]:
        """Label image uint8 [H, W] on the picture's grid: probabilities are resampled, then the largest wins.

        Bilinear, antialiased where it shrinks; a label image cannot be resampled itself without jagged or lost
        outlines. Ties go to the lower channel. ``seen`` is the part of the network's grid that the probabilities are
        of, ``wanted`` the part of the picture to label; all of it where they are None.
        """
        seen, wanted = seen or Box(0, 0, *self.network_size), wanted or Box(0, 0, self.height, self.width)
        best = np.full(wanted.size, -np.inf, np.float32)
        labels = np.zeros(wanted.size, np.uint8)
        for channel, plane in enumerate(probabilities_CHW):
            resampled = self._plane_to_picture(plane, seen, wanted)
            labels[resampled > best] = LABEL_OF_CHANNEL[channel]
            np.maximum(best, resampled, out=best)
        return labels

    def _plane_to_picture(self, plane: npt.NDArray[np.float16], seen: Box, wanted: Box) -> npt.NDArray[np.float32]:
        if self._is_same:
            return plane[wanted.within(seen)].astype(np.float32)
        down, across = self.picture_per_network
        left, right = (min(max(side / across - seen.left, 0.0), plane.shape[1]) for side in (wanted.left, wanted.right))
        top, bottom = (min(max(side / down - seen.top, 0.0), plane.shape[0]) for side in (wanted.top, wanted.bottom))
        image = Image.fromarray(plane.astype(np.float32))
        size = (wanted.right - wanted.left, wanted.bottom - wanted.top)
        return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=(left, top, right, bottom)))


class _Block(NamedTuple):
    """One of the blocks along a side, and what of the picture its pixels are made from."""

    begin: int
    end: int
    """In network pixels."""
    first: int
    last: int
    """In pixels of the picture, the filter's reach included."""
    ratio: float
    """Picture pixels in a network pixel."""

    @classmethod
    def of(cls, index: int, network_side: int, picture_side: int) -> "_Block":
        """Block number ``index`` along a side."""
        ratio = picture_side / network_side
        begin, end = index * _BLOCK, min((index + 1) * _BLOCK, network_side)
        reach = math.ceil(2 * max(1.0, ratio)) + 1  # of Pillow's bicubic filter
        first, last = max(0, math.floor(begin * ratio) - reach), min(picture_side, math.ceil(end * ratio) + reach)
        return cls(begin, end, first, last, ratio)

    @property
    def source(self) -> tuple[float, float]:
        """Where the block lies among the pixels from ``first`` to ``last``."""
        begin, end = self.begin * self.ratio - self.first, self.end * self.ratio - self.first
        return begin, min(end, float(self.last - self.first))


def _blocks(begin: int, end: int) -> range:
    return range(begin // _BLOCK, -(-end // _BLOCK))


def _resampled(
    region: npt.NDArray[np.uint8], rows: _Block, columns: _Block, top: int, left: int
) -> npt.NDArray[np.uint8]:
    """One block from a region of the picture that begins at ``top`` and ``left``."""
    pixels = region[rows.first - top : rows.last - top, columns.first - left : columns.last - left]
    (y0, y1), (x0, x1) = rows.source, columns.source
    size = (columns.end - columns.begin, rows.end - rows.begin)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC, box=(x0, y0, x1, y1)))
