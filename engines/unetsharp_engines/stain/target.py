"""The appearance that slides are normalized to, and optical density: the constants of Macenko's method."""

import numpy as np
import numpy.typing as npt

from unetsharp_engines.errors import InputError

__all__ = ["DENSITY", "TARGET_MAX_CONCENTRATIONS", "TARGET_STAINS", "WHITE", "check_rgb"]

WHITE: float = 240.0
"""Io: level of unstained glass; optical density is measured against it."""

TARGET_STAINS: npt.NDArray[np.float64] = np.array([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]])
"""Optical density of unit concentration, rows R, G, B, columns hematoxylin, eosin (torchstain's ``HERef``)."""

TARGET_MAX_CONCENTRATIONS: npt.NDArray[np.float64] = np.array([1.9705, 1.0308])
"""99th percentile of the concentrations of hematoxylin and eosin (torchstain's ``maxCRef``)."""

DENSITY: npt.NDArray[np.float64] = -np.log((np.arange(256) + 1.0) / WHITE)
"""Optical density of each uint8 level: -ln((I + 1) / Io), from 5.48 (black) to -0.06 (255)."""

for _constant in (TARGET_STAINS, TARGET_MAX_CONCENTRATIONS, DENSITY):
    _constant.flags.writeable = False


def check_rgb(image: npt.NDArray[np.uint8]) -> None:
    """Raise InputError unless ``image`` is uint8 with three channels last."""
    if image.dtype != np.uint8 or image.ndim == 0 or image.shape[-1] != 3:
        raise InputError(
            f"stain normalization got a {image.dtype} array of shape {image.shape}; "
            "it takes uint8 RGB, channels last: shape (..., 3)"
        )
