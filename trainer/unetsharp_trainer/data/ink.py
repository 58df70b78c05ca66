"""Opaque dark stains over a patch: tissue ink, pen, pigment. Slides have them, training patches rarely."""

import numpy as np
import numpy.typing as npt

from unetsharp_engines.contract import BACKGROUND

__all__ = ["spill_ink"]

SHARE = 0.2
"""Share of patches that get ink."""
_COVERED = (0.05, 0.6)
"""Least and most share of a patch under it."""
_BLOBS = (3, 9)
"""Cells along a side of the coarse noise that shapes it: of 28 to 85 pixels each in a patch, larger than nuclei."""
_DARKEST, _NEARLY_BLACK, _COLOURED = 0, 60, 120
"""Levels: most ink is nearly black in all channels, some is coloured."""
_GRAIN = 5.0


def spill_ink(
    image: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8], generator: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Cover parts of RGB uint8 [H,W,3] with ink in one patch of five; in the class map uint8 [H,W] it is background.

    Returns new arrays, or those given where no ink is spilled.
    """
    if generator.random() >= SHARE:
        return image, target
    under = _blots(image.shape[:2], generator)
    lightest = _NEARLY_BLACK if generator.random() < 0.7 else _COLOURED
    color = generator.uniform(_DARKEST, lightest, 3)
    levels = color + generator.normal(0, _GRAIN, (*image.shape[:2], 1))
    inked = np.where(under[..., None], np.clip(levels, 0, 255), image).astype(np.uint8)
    return inked, np.where(under, np.uint8(BACKGROUND.channel), target)


def _blots(shape: tuple[int, ...], generator: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Smooth random shapes with frayed edges, bool [H,W]."""
    import cv2

    def relief(cells: int) -> npt.NDArray[np.float32]:
        noise = generator.normal(size=(cells, cells)).astype(np.float32)
        return np.asarray(cv2.resize(noise, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC))

    cells = int(generator.integers(*_BLOBS, endpoint=True))
    height = relief(cells) + 0.1 * relief(12 * cells)
    return np.asarray(height > np.quantile(height, 1 - generator.uniform(*_COVERED)))
