"""The appearance that slides are normalized to, and optical density: the constants of Macenko's method."""

import numpy as np
import numpy.typing as npt

__all__ = ["DENSITY", "TARGET_MAX_CONCENTRATIONS", "TARGET_STAINS", "WHITE"]

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
