"""Outlines of masks as polygons between pixel corners: pixel (row, column) reaches from (row, column) to the next."""

import numpy as np
import numpy.typing as npt
from skimage.measure import find_contours

__all__ = ["outline"]


def outline(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """The outline of a 4-connected mask without holes, bool [h, w]: float64 [V + 1, 2], (x, y), first = last point.

    Marching squares at ½ (scikit-image): straight along pixel edges' midpoints, corners cut, so the polygon is
    simple, lies within the mask's pixels, and its area is the pixel count minus ½, whatever the shape. Points inside
    straight runs are left out. Counter-clockwise in x, y taken as they are (GeoJSON's right-hand rule).
    """
    rings = find_contours(np.pad(mask, 1).astype(np.float64), 0.5, fully_connected="low")
    (ring,) = rings
    return _without_straight_points(ring[:, ::-1] - 0.5)


def _without_straight_points(ring: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    steps = np.diff(ring, axis=0)
    before = np.roll(steps, 1, axis=0)
    turns = before[:, 0] * steps[:, 1] != before[:, 1] * steps[:, 0]
    corners = ring[:-1][turns]
    return np.concatenate([corners, corners[:1]])
