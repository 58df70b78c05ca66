"""What hematoxylin and eosin look like: evidence for swapped colour channels and for masks of other images.

Both rules were measured on real patches: folds of CoNSeP, NuCLS and HGSC (222), and DSB 2018 (106).
"""

import numpy as np
import numpy.typing as npt

__all__ = ["DARK_SHARE", "MIN_MASK_PIXELS", "darkest_take_red", "darkness_under"]

DARK_SHARE = 0.05
"""Share of a patch's pixels, the darkest in green, that are taken for nuclei."""

MIN_MASK_PIXELS = 300
"""Pixels that nuclei and background must each have for a mask to be judged."""

_DENSITY = -np.log((np.arange(256) + 1.0) / 256.0)


def darkest_take_red(image: npt.NDArray[np.uint8]) -> bool | None:
    """Whether the darkest pixels of uint8 RGB [H,W,3] take more red than blue, compared with the rest of the patch.

    Hematoxylin, the nuclei's stain, does; eosin takes about as much of both. Holds for 83% or more of real patches of
    each tissue, and for as few of those whose channels are swapped (BGR). None for a flat patch.
    """
    green = image[..., 1]
    darker_than = np.cumsum(np.bincount(green.ravel(), minlength=256)) <= DARK_SHARE * green.size
    dark = green < np.count_nonzero(darker_than)
    if not dark.any():
        return None
    red, _, blue = (
        _mean_density(channel[dark]) - _mean_density(channel[~dark]) for channel in np.moveaxis(image, -1, 0)
    )
    return red > blue


def darkness_under(image: npt.NDArray[np.uint8], nuclei: npt.NDArray[np.bool_]) -> float:
    """Mean optical density (all channels added) of uint8 RGB [H,W,3] under bool [H,W], less that of the rest.

    A patch is darker under its own nuclei than under another patch's in 99% or more of real patches, and in half of
    them where masks are shuffled.
    """
    return 3.0 * (_mean_density(image[nuclei]) - _mean_density(image[~nuclei]))


def _mean_density(levels: npt.NDArray[np.uint8]) -> float:
    return float(np.bincount(levels.ravel(), minlength=256) @ _DENSITY) / levels.size
