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

_STRIP_PIXELS: int = 16_000_000
"""Pixels decoded at a time for the overview."""

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

        Averages of whole pixels of the smallest level that is large enough, made strip by strip.
        """
        level = max(i for i, size in enumerate(self.levels) if i == 0 or max(size) >= longest)
        height, width = self.levels[level]
        shrink = -(-max(height, width) // longest)
        rows = max(1, _STRIP_PIXELS // (shrink * width)) * shrink
        strips = (self.read(top, 0, min(rows, height - top), width, level) for top in range(0, height, rows))
        return np.concatenate([np.asarray(Image.fromarray(strip).reduce(shrink)) for strip in strips])

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
