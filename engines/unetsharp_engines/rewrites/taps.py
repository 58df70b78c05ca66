"""A 3×3 convolution of an upsampled map, taken apart: nine 1×1 taps below, two small matrices that put them together.

Let ``U`` be bilinear upsampling by an integer factor (half-pixel centres, edges held) and ``conv`` a 3×3 convolution
with zero padding of one. Write ``W[dy, dx]`` for its tap, a matrix over channels, and ``S[d]`` for the shift by d rows
or columns that fills with zero. Then, for a map ``x`` at low resolution,

    conv(U x) = b + Σ_dy Σ_dx  S[dy] S[dx] W[dy, dx] U x          a convolution is a sum of shifted taps; what the
                                                                  padding adds is the zero that the shift fills in
              = b + Σ_dy Σ_dx  S[dy] S[dx] U W[dy, dx] x          W acts on channels, U on pixels: they commute
              = b + Σ_dy  (S[dy] U_rows) Σ_dx (W[dy, dx] x) (S[dx] U_columns)ᵀ
                                                                  U and S act on rows and on columns apart

So the taps are a 1×1 convolution to 9 · classes at low resolution, and the rest are two matrices of fixed numbers,
``tap_matrices`` of either side: exact, borders included. The bias rides on the centre tap, whose shift is none and
which therefore never meets the padding; U keeps a constant constant.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from unetsharp_engines.contract import TAPS

__all__ = ["CENTRE", "pointwise_taps", "tap_matrices"]

CENTRE = 4
"""The tap that is not shifted."""


def pointwise_taps(
    weight: npt.NDArray[np.floating[Any]], bias: npt.NDArray[np.floating[Any]]
) -> tuple[npt.NDArray[np.floating[Any]], npt.NDArray[np.floating[Any]]]:
    """The 1×1 convolution of the low-resolution map: weight [9·O, I, 1, 1] and bias [9·O], channels as `TAPS` says.

    ``weight`` [O, I, 3, 3] and ``bias`` [O] are the 3×3 convolution's.
    """
    outputs, inputs = weight.shape[:2]
    taps_bias = np.zeros((outputs, TAPS), bias.dtype)
    taps_bias[:, CENTRE] = bias
    return weight.transpose(0, 3, 2, 1).reshape(TAPS * outputs, inputs, 1, 1), taps_bias.reshape(-1)


def tap_matrices(length: int, factor: int) -> npt.NDArray[np.float64]:
    """Upsampling of one side, then each of the three shifts: float64 [3, length·factor, length], shifts -1, 0, 1.

    Row i of the middle matrix holds the weights with which the ``length`` samples make upsampled sample i.
    """
    upsampled = _upsampling(length, factor)
    empty = np.zeros((1, length))
    return np.stack([np.vstack([empty, upsampled[:-1]]), upsampled, np.vstack([upsampled[1:], empty])])


def _upsampling(length: int, factor: int) -> npt.NDArray[np.float64]:
    """Bilinear with half-pixel centres, samples beyond the edge equal to the edge's: [length·factor, length]."""
    source = np.clip((np.arange(length * factor) + 0.5) / factor - 0.5, 0, length - 1)
    distance = np.abs(source[:, None] - np.arange(length))
    weights: npt.NDArray[np.float64] = np.maximum(0.0, 1.0 - distance)
    return weights
