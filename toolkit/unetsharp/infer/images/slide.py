"""Slides: pictures too large to hold, read region by region at the resolutions that the file has."""

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from unetsharp.infer.images.decoding import decoding

__all__ = ["Slide"]

_BLOCK_PX: int = 4000
"""Side of the blocks that are decoded for the overview, one at a time."""

_S = TypeVar("_S", bound="Slide")


class Slide(ABC):
    """A slide, open. Used as a context manager it closes itself.

    Places are in pixels of the full resolution, (0, 0) the upper left corner as QuPath shows it.
    """

    def __init__(self, path: Path, levels: tuple[tuple[int, int], ...], mpp: float | None) -> None:
        self.path = path
        self.levels = levels
        """Height and width at each resolution that the file has, the full one first."""
        self.height, self.width = levels[0]
        self.mpp = mpp
        """µm per pixel that the file states, None if it states none that can be believed."""

    def read(self, top: int, left: int, height: int, width: int, level: int = 0) -> npt.NDArray[np.uint8]:
        """A region within the slide, RGB uint8 [height, width, 3], in pixels of ``level``.

        Where the scanner left glass out it is white. InputError, one line that names the file, for damaged data.
        """
        with decoding(self.path):
            return self._read(top, left, height, width, level)

    def overview(self, longest: int) -> npt.NDArray[np.uint8]:
        """The whole slide with its longer side at most ``longest`` pixels, RGB uint8; never enlarged.

        Averages of whole pixels of the smallest level that is large enough, made block by block.
        """
        level = max(i for i, size in enumerate(self.levels) if i == 0 or max(size) >= longest)
        height, width = self.levels[level]
        shrink = -(-max(height, width) // longest)
        side = max(1, _BLOCK_PX // shrink) * shrink
        rows = (
            [self._reduced(top, left, side, level, shrink) for left in range(0, width, side)]
            for top in range(0, height, side)
        )
        return np.concatenate([np.concatenate(row, axis=1) for row in rows])

    def _reduced(self, top: int, left: int, side: int, level: int, shrink: int) -> npt.NDArray[np.uint8]:
        """The block at ``top`` and ``left``, as far as the level reaches, ``shrink`` times smaller."""
        height, width = self.levels[level]
        block = self.read(top, left, min(side, height - top), min(side, width - left), level)
        return np.asarray(Image.fromarray(block).reduce(shrink))

    @abstractmethod
    def _read(self, top: int, left: int, height: int, width: int, level: int) -> npt.NDArray[np.uint8]:
        """`read`, raising what the decoder raises."""

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    def __enter__(self: _S) -> _S:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
