"""Macenko normalization of many tiles at once, in PyTorch alone: the peer of the CUDA kernels.

The same method as `unetsharp_engines.stain`, without a loop over tiles and without waiting for the GPU: masks instead
of selections, closed forms instead of solvers, the few highest and lowest values instead of a sort. Pixels are worked
on in float32, what is one number a tile in float64. It compiles whole (``torch.compile``).
"""

import math
from typing import TYPE_CHECKING

from unetsharp_engines.stain.estimation import (
    MIN_IN_PLANE_MEAN,
    MIN_MAX_CONCENTRATION,
    MIN_PLANARITY,
    MIN_STAIN_ANGLE,
    MIN_TISSUE_DENSITY,
    MIN_TISSUE_FRACTION,
    MIN_VARIANCE,
)
from unetsharp_engines.stain.target import TARGET_MAX_CONCENTRATIONS, TARGET_STAINS, WHITE

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["apply", "estimate"]

_EXTREME = 0.01
"""Share of values beyond each percentile: α is 1%."""

# Python's own numbers, not NumPy's: the compiler takes them for constants.
_MIN_ANGLE = float(MIN_STAIN_ANGLE)
_TARGET_32 = TARGET_STAINS.tolist()
_TARGET_2 = TARGET_MAX_CONCENTRATIONS.tolist()


def apply(tiles_NHWC: "Tensor", matrix_N33: "Tensor", offset_N3: "Tensor") -> "Tensor":
    """Normalized levels over 255, float32 [N, 3, H, W], of uint8 tiles; one transform a tile, or N = 1 for all."""
    import torch

    logarithm_NHW3 = torch.log2(tiles_NHWC.float() + 1.0)
    mixed = (matrix_N33.float()[:, None, None] * logarithm_NHW3[..., None, :]).sum(-1) + offset_N3.float()[
        :, None, None
    ]
    return (torch.exp2(mixed).clamp_max(255.0).floor() / 255.0).permute(0, 3, 1, 2)


def estimate(tiles_NHWC: "Tensor", fallback_33: "Tensor", fallback_3: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
    """Each tile's transform: float64 matrices [N, 3, 3] and offsets [N, 3], and whether it has one, bool [N].

    A tile without an estimate of its own gets the fallback.
    """
    import torch

    density_NP3 = -torch.log((tiles_NHWC.flatten(1, 2).float() + 1.0) / WHITE)
    tissue_NP = (density_NP3 >= MIN_TISSUE_DENSITY).all(dim=-1)
    count_N = tissue_NP.sum(dim=1)
    axes_N23, spans_a_plane_N = _plane(density_NP3, tissue_NP, count_N)
    stains_N32 = _extreme_directions(density_NP3, tissue_NP, count_N, axes_N23)
    unmix_N23 = _pseudo_inverse(stains_N32)
    maxima_N2 = _maxima(density_NP3, unmix_N23)
    found_N = (
        (count_N >= MIN_TISSUE_FRACTION * tissue_NP.shape[1])
        & spans_a_plane_N
        & (_angle(stains_N32) >= _MIN_ANGLE)
        & (maxima_N2.amin(dim=1) >= MIN_MAX_CONCENTRATION)
    )
    target_32 = torch.tensor(_TARGET_32, dtype=torch.float64, device=tiles_NHWC.device)
    target_2 = torch.tensor(_TARGET_2, dtype=torch.float64, device=tiles_NHWC.device)
    matrix_N33 = (target_32 * (target_2 / maxima_N2)[:, None]) @ unmix_N23
    offset_N3 = math.log2(WHITE) * (1.0 - matrix_N33.sum(dim=2)) + math.log2(1.0 + 2.0**-18)
    return (
        torch.where(found_N[:, None, None], matrix_N33, fallback_33),
        torch.where(found_N[:, None], offset_N3, fallback_3),
        found_N,
    )


def _plane(density_NP3: "Tensor", tissue_NP: "Tensor", count_N: "Tensor") -> "tuple[Tensor, Tensor]":
    """Axes [N, 2, 3] of the plane that tissue's densities spread in, and whether they span one [N]."""
    import torch

    weight_NP1 = tissue_NP[..., None].float()
    counts = count_N.clamp_min(1).double()
    mean_N3 = (density_NP3 * weight_NP1).sum(dim=1, dtype=torch.float64) / counts[:, None]
    centred = (density_NP3 - mean_N3[:, None].float()) * weight_NP1
    products = [(centred[..., a] * centred[..., b]).sum(dim=1, dtype=torch.float64) for a, b in _PAIRS]
    covariance = torch.stack(products, dim=1)[:, _SYMMETRIC].reshape(-1, 3, 3) / counts[:, None, None]
    middle, largest, normal_N3 = _smallest_eigenvector(covariance)
    first = mean_N3 - (mean_N3 * normal_N3).sum(dim=1, keepdim=True) * normal_N3
    length = first.norm(dim=1, keepdim=True)
    spans = (middle >= (MIN_PLANARITY * largest).clamp_min(MIN_VARIANCE)) & (length[:, 0] >= MIN_IN_PLANE_MEAN)
    first = first / length.clamp_min(MIN_IN_PLANE_MEAN)
    return torch.stack([first, torch.linalg.cross(normal_N3, first)], dim=1), spans


_PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
_SYMMETRIC = [0, 1, 2, 1, 3, 4, 2, 4, 5]
"""Which of `_PAIRS` is each entry of the 3×3 matrix, row by row."""


def _smallest_eigenvector(matrix_N33: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
    """Middle and largest eigenvalue [N] of symmetric matrices, and the unit eigenvector [N, 3] of the smallest.

    Smith 1961, "Eigenvalues of a symmetric 3 × 3 matrix"; the vector is the longest cross product of two rows.
    """
    import torch

    eye = torch.eye(3, dtype=matrix_N33.dtype, device=matrix_N33.device)
    centre = matrix_N33.diagonal(dim1=1, dim2=2).mean(dim=1)
    deviation = matrix_N33 - centre[:, None, None] * eye
    spread = (deviation.square().sum(dim=(1, 2)) / 6.0).sqrt().clamp_min(1e-300)
    scaled = deviation / spread[:, None, None]
    determinant = (scaled[:, 0] * torch.linalg.cross(scaled[:, 1], scaled[:, 2])).sum(dim=1)
    angle = torch.acos((determinant / 2.0).clamp(-1.0, 1.0)) / 3.0
    largest = centre + 2.0 * spread * torch.cos(angle)
    smallest = centre + 2.0 * spread * torch.cos(angle + 2.0 * math.pi / 3.0)
    shifted = matrix_N33 - smallest[:, None, None] * eye
    crosses = torch.stack(
        [torch.linalg.cross(shifted[:, a], shifted[:, b]) for a, b in ((0, 1), (0, 2), (1, 2))], dim=1
    )
    lengths = crosses.norm(dim=2)
    longest = lengths.argmax(dim=1)[:, None, None].expand(-1, 1, 3)
    normal = crosses.gather(1, longest)[:, 0]
    return 3.0 * centre - largest - smallest, largest, normal / normal.norm(dim=1, keepdim=True).clamp_min(1e-300)


def _extreme_directions(density_NP3: "Tensor", tissue_NP: "Tensor", count_N: "Tensor", axes_N23: "Tensor") -> "Tensor":
    """Unit densities [N, 3, 2] of hematoxylin and eosin: the 1st and 99th percentile of the angle in the plane."""
    import torch

    coordinates = [(density_NP3 * axes_N23[:, None, i].float()).sum(dim=-1) for i in (0, 1)]
    angle_NP = torch.atan2(coordinates[1], coordinates[0])
    low_rank = _rank(_EXTREME, count_N)
    high_rank = count_N.clamp_min(1) - 1 - _rank(1.0 - _EXTREME, count_N)
    low = -_ranked_from_top(torch.where(tissue_NP, -angle_NP, -math.inf), low_rank)
    high = _ranked_from_top(torch.where(tissue_NP, angle_NP, -math.inf), high_rank)
    # Without any tissue the angles are infinite; the tile is flagged by its count.
    angles = torch.stack([low, high], dim=1).double().nan_to_num(0.0, 0.0, 0.0)
    directions = torch.cos(angles)[..., None] * axes_N23[:, :1] + torch.sin(angles)[..., None] * axes_N23[:, 1:]
    hematoxylin_first = (directions[:, 0, 0] > directions[:, 1, 0])[:, None, None]
    return torch.where(hematoxylin_first, directions, directions.flip(1)).transpose(1, 2)


def _maxima(density_NP3: "Tensor", unmix_N23: "Tensor") -> "Tensor":
    """99th percentile of each stain's concentration over all pixels, float64 [N, 2]."""
    import torch

    mixing = unmix_N23.float()
    concentrations = torch.stack([(density_NP3 * mixing[:, None, i]).sum(dim=-1) for i in (0, 1)], dim=1)
    pixels = torch.full(concentrations.shape[:2], density_NP3.shape[1], device=density_NP3.device)
    rank = pixels - 1 - _rank(1.0 - _EXTREME, pixels)
    return _ranked_from_top(concentrations, rank).double()


def _rank(share: float, count: "Tensor") -> "Tensor":
    """Nearest rank from below."""
    import torch

    return torch.round(share * (count.clamp_min(1) - 1).double()).long()


def _ranked_from_top(values: "Tensor", rank: "Tensor") -> "Tensor":
    """The value [...] of each row [..., P] that ``rank`` others exceed; rank is at most 1% of P."""
    most = math.ceil(_EXTREME * values.shape[-1]) + 1
    return values.topk(most, dim=-1).values.gather(-1, rank.clamp(0, most - 1)[..., None])[..., 0]


def _pseudo_inverse(stains_N32: "Tensor") -> "Tensor":
    """Least-squares unmixing [N, 2, 3]; zeros for stains that are one line."""
    import torch

    first, second = stains_N32.unbind(dim=2)
    aa, ab, bb = (first * first).sum(1), (first * second).sum(1), (second * second).sum(1)
    determinant = aa * bb - ab * ab
    inverse = torch.where(determinant > 1e-12, 1.0 / determinant.clamp_min(1e-12), 0.0)[:, None]
    rows = [bb[:, None] * first - ab[:, None] * second, aa[:, None] * second - ab[:, None] * first]
    return torch.stack([row * inverse for row in rows], dim=1)


def _angle(stains_N32: "Tensor") -> "Tensor":
    """Angle in radians between the lines along the two stains, 0 to π/2."""
    import torch

    first, second = stains_N32.unbind(dim=2)
    return torch.atan2(torch.linalg.cross(first, second).norm(dim=1), (first * second).sum(dim=1).abs())
