"""Which parts of a picture are bare glass: the network need not be asked what lies there."""

import numpy as np
import numpy.typing as npt

from unetsharp.infer.instances import MIN_AREA
from unetsharp_engines.stain.estimation import DARKEST_GLASS

__all__ = ["is_glass", "stained"]


def stained(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Where uint8 RGB [..., 3] takes up light, bool [...]: optical density 0.15 or more in at least one channel.

    Pale eosin does. Macenko's "tissue" asks it of all three channels, and leaves pale nuclei out.
    """
    red, green, blue = (picture[..., channel] < DARKEST_GLASS for channel in range(3))
    return np.asarray(red | green | blue)


def is_glass(picture: npt.NDArray[np.uint8]) -> bool:
    """Whether uint8 RGB [H, W, 3] at the network's resolution has too few stained pixels for the smallest nucleus."""
    return bool(np.count_nonzero(stained(picture)) < MIN_AREA)
