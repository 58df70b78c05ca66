"""Macenko stain normalization: the CPU reference, in numpy float64, that every other implementation is held to.

Macenko et al. 2009, "A method for normalizing histology slides for quantitative analysis", as torchstain 1.4.1
computes it, evaluated in float64 and with two corrections: the stain plane's axes do not depend on an eigensolver's
signs, and pixels that carry no estimate get a status instead of an exception or a painted tile.

    `estimate`        pixels → `StainEstimate`: status, stains, and the transform they imply
    `StainTransform`  I' = exp2(A·log2(I+1) + b): the whole application, as one 3×3 matrix and one offset
    `StainPlan`       which transform each tile gets: one for the slide, or each tile its own
"""

from unetsharp_engines.stain.estimation import StainEstimate, StainStatus, estimate
from unetsharp_engines.stain.plan import StainPlan, normalize_tiles
from unetsharp_engines.stain.transform import IDENTITY, StainTransform

__all__ = [
    "IDENTITY",
    "StainEstimate",
    "StainPlan",
    "StainStatus",
    "StainTransform",
    "estimate",
    "normalize_tiles",
]
