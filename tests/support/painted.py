"""Pictures painted for `FakeRuntime`: what is in them is known."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from unetsharp_engines.runtimes.fake import FakeRuntime

__all__ = ["glass", "painted"]

Disc = tuple[float, float, float, str]
"""Centre x, centre y, radius in pixels, class name."""


def glass(height: int, width: int) -> npt.NDArray[np.uint8]:
    """A picture of background alone, uint8 [height, width, 3]."""
    return np.full((height, width, 3), FakeRuntime.COLORS["Background"], np.uint8)


def painted(height: int, width: int, discs: Sequence[Disc]) -> npt.NDArray[np.uint8]:
    """Background with discs in the colours of their classes, uint8 [height, width, 3]."""
    picture = glass(height, width)
    rows, columns = np.ogrid[:height, :width]
    for x, y, radius, name in discs:
        picture[(rows + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2 <= radius**2] = FakeRuntime.COLORS[name]
    return picture
