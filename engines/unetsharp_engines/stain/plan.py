"""Which transform each tile gets."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unetsharp_engines.stain.estimation import StainStatus, estimate
from unetsharp_engines.stain.transform import StainTransform

__all__ = ["StainPlan", "normalize_tiles"]


@dataclass(frozen=True)
class StainPlan:
    """How a runtime normalizes the tiles it is given."""

    transform: StainTransform
    """The slide's transform, a fixed one, or `IDENTITY` for none."""
    per_tile: bool = False
    """Each tile by its own estimate; a tile that has none (its status is not OK) falls back to ``transform``."""

    def apply(self, tiles_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Normalize tiles, uint8 [N, H, W, 3]; same shape and type back. InputError if they are not uint8 RGB."""
        if self.per_tile:
            return normalize_tiles(tiles_NHWC, fallback=self.transform)
        return self.transform.apply(tiles_NHWC)


def normalize_tiles(tiles_NHWC: npt.NDArray[np.uint8], *, fallback: StainTransform) -> npt.NDArray[np.uint8]:
    """Normalize each tile of uint8 [N, H, W, 3] by its own estimate, flagged tiles by ``fallback``."""
    normalized = np.empty_like(tiles_NHWC)
    for tile, out in zip(tiles_NHWC, normalized, strict=True):
        own = estimate(tile)
        out[...] = (own.transform if own.status is StainStatus.OK else fallback).apply(tile)
    return normalized
