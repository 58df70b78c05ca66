"""Which two stains the pixels show: Macenko's estimate, with a status where they show none."""

import enum
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unetsharp_engines.stain.order import nearest_rank
from unetsharp_engines.stain.pixels import blocks, check_rgb
from unetsharp_engines.stain.target import DENSITY
from unetsharp_engines.stain.transform import IDENTITY, StainTransform

__all__ = ["StainEstimate", "StainStatus", "estimate"]

_Array = npt.NDArray[np.float64]

MIN_TISSUE_DENSITY = 0.15
"""β: a pixel is tissue where all three of its optical densities reach this."""

PERCENTILE = 1.0
"""α: stains lie at this percentile of the angle and at 100 minus it; so do the maximal concentrations."""

MIN_TISSUE_FRACTION = 0.05
MIN_PLANARITY = 0.002
"""Least ratio of the middle eigenvalue of the densities' covariance to the largest."""
MIN_VARIANCE = 1e-12
"""Least middle eigenvalue, OD²: float64 rounding leaves less than this where all pixels are one colour."""
MIN_IN_PLANE_MEAN = 1e-6
"""Least length of the mean density seen in the stain plane: a plane square to it mixes no two stains."""
MIN_STAIN_ANGLE = np.deg2rad(3.0)
MIN_MAX_CONCENTRATION = 0.02

DARKEST_GLASS = int(np.flatnonzero(DENSITY >= MIN_TISSUE_DENSITY)[-1]) + 1  # density falls with the level


class StainStatus(enum.Enum):
    """Whether pixels carry a stain estimate, and if not, what they lack."""

    OK = "ok"
    FEW_PIXELS = "few-pixels"
    """Less than 5% of the pixels are tissue."""
    RANK_DEFICIENT = "rank-deficient"
    """The tissue's colours span no stain plane: their covariance's middle eigenvalue is below 0.002 of the largest."""
    STAINS_TOO_CLOSE = "stains-too-close"
    """The two stains are less than 3° apart."""
    BAD_MAXC = "bad-maxc"
    """A stain's maximal concentration is below 0.02."""


@dataclass(frozen=True, eq=False)
class StainEstimate:
    """The stains of a picture. Every number is finite, whatever the status."""

    status: StainStatus
    transform: StainTransform
    """To the target's appearance; `IDENTITY` unless the status is OK."""
    stain_matrix: _Array
    """float64 (3, 2): unit optical density, rows R, G, B, columns hematoxylin, eosin; zeros where none was found."""
    max_concentrations: _Array
    """float64 (2,): 99th percentiles of hematoxylin and eosin over all pixels; zeros where none was found."""
    tissue_fraction: float
    """Share of pixels that are tissue, 0 to 1."""


def estimate(image: npt.NDArray[np.uint8]) -> StainEstimate:
    """Estimate the stains of uint8 RGB pixels of shape (..., 3): a tile, or all pixels of a slide.

    Never raises for what the pixels show, not even for none at all: see `StainStatus`. InputError if the array is
    not uint8 RGB. Takes about 100 bytes of memory a pixel.
    """
    check_rgb(image)
    levels = np.ascontiguousarray(image.reshape(-1, 3).T)
    tissue = np.compress(levels.max(axis=0) < DARKEST_GLASS, levels, axis=1)
    fraction = tissue.shape[1] / max(1, levels.shape[1])
    if fraction < MIN_TISSUE_FRACTION:
        return _flagged(StainStatus.FEW_PIXELS, fraction)
    densities = DENSITY.take(tissue)
    axes = _stain_plane(densities)
    if axes is None:
        return _flagged(StainStatus.RANK_DEFICIENT, fraction)
    stains = _extreme_directions(axes, axes @ densities)
    if _angle(stains) < MIN_STAIN_ANGLE:
        return _flagged(StainStatus.STAINS_TOO_CLOSE, fraction, stains)
    maxima = np.array([nearest_rank(stain, 100.0 - PERCENTILE) for stain in _concentrations(stains, levels)])
    if maxima.min() < MIN_MAX_CONCENTRATION:
        return _flagged(StainStatus.BAD_MAXC, fraction, stains, maxima)
    return StainEstimate(StainStatus.OK, StainTransform.from_stains(stains, maxima), stains, maxima, fraction)


def _flagged(
    status: StainStatus, fraction: float, stains: _Array | None = None, maxima: _Array | None = None
) -> StainEstimate:
    return StainEstimate(
        status,
        IDENTITY,
        np.zeros((3, 2)) if stains is None else stains,
        np.zeros(2) if maxima is None else maxima,
        fraction,
    )


def _stain_plane(densities: _Array) -> _Array | None:
    """Axes (2, 3) of the plane the densities (3, N) spread in, or None where they span none.

    The plane is the normal's complement; its first axis is the mean density seen in it, so angles are small and turn
    on no eigensolver's choice of signs.
    """
    mean = densities.mean(axis=1)
    centred = densities - mean[:, None]
    # Nine dot products: BLAS multiplies (3, N) by (N, 3) four times slower.
    covariance = np.array([[a @ b for b in centred] for a in centred]) / densities.shape[1]
    variances, directions = np.linalg.eigh(covariance)
    if variances[1] < max(MIN_PLANARITY * variances[2], MIN_VARIANCE):
        return None
    normal = directions[:, 0]
    first = mean - (mean @ normal) * normal
    length = np.linalg.norm(first)
    if length < MIN_IN_PLANE_MEAN:
        return None
    first /= length
    return np.stack([first, np.cross(normal, first)])


def _extreme_directions(axes: _Array, coordinates: _Array) -> _Array:
    """Stains (3, 2), hematoxylin first, from tissue pixels' coordinates (2, N) on the plane's axes (2, 3)."""
    angles = np.arctan2(coordinates[1], coordinates[0])
    low, high = (nearest_rank(angles, percent) for percent in (PERCENTILE, 100.0 - PERCENTILE))
    a, b = (axes.T @ (np.cos(angle), np.sin(angle)) for angle in (low, high))
    # Hematoxylin is the stain that takes more red.
    return np.stack([a, b] if a[0] > b[0] else [b, a], axis=1)


def _angle(stains: _Array) -> float:
    """Angle in radians, 0 to π/2, between the lines along the two unit columns of (3, 2)."""
    first, second = stains.T
    return float(np.arctan2(np.linalg.norm(np.cross(first, second)), abs(first @ second)))


def _concentrations(stains: _Array, levels: npt.NDArray[np.uint8]) -> _Array:
    """Of each stain (3, 2) in each pixel (3, N), by least squares: (2, N)."""
    unmix = np.linalg.pinv(stains)
    concentrations = np.empty((2, levels.shape[1]))
    for block in blocks(levels.shape[1]):
        np.matmul(unmix, DENSITY.take(levels[:, block]), out=concentrations[:, block])
    return concentrations
