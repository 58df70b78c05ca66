"""Where to clip: from a histogram of |x| to the magnitude that INT8's 127 stands for.

A tensor is quantized as q = clip(round(x / s), -127, 127) with s = threshold / 127 and zero point 0. A small threshold
clips large values, a large one rounds small values coarsely; the methods weigh the two differently.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from unetsharp_engines.quantization.histogram import MagnitudeHistogram

__all__ = ["LEVELS", "METHODS", "PERCENTILE", "threshold"]

LEVELS = 127
"""Largest INT8 magnitude used: symmetric, -128 is left out, as TensorRT does."""

PERCENTILE = 99.99
"""Share of values, in percent, that ``percentile`` leaves unclipped: the middle of what Wu et al. 2020, "Integer
quantization for deep learning inference", compare for convolutional networks (99.9 to 99.9999)."""

_CANDIDATES = 512
_KL_LEVELS = LEVELS + 1
"""Magnitudes 0 to 127."""

_Floats = npt.NDArray[np.float64]


def threshold(histogram: MagnitudeHistogram, method: str) -> float:
    """The magnitude to clip at by ``method``, a key of `METHODS`: positive, at most the largest seen.

    A tensor that was zero everywhere has no magnitude: it gets 1, which holds zeros exactly. Raises KeyError.
    """
    choose = METHODS[method]
    return choose(histogram) if histogram.largest > 0.0 else 1.0


def _minmax(histogram: MagnitudeHistogram) -> float:
    """The largest magnitude: nothing is clipped."""
    return histogram.largest


def _percentile(histogram: MagnitudeHistogram) -> float:
    """The magnitude that `PERCENTILE` percent of all values do not exceed, interpolated inside its bin."""
    wanted = histogram.total * PERCENTILE / 100.0 - histogram.zeros
    reached = np.cumsum(histogram.counts)
    bin_ = int(np.searchsorted(reached, wanted))
    before = reached[bin_ - 1] if bin_ else 0
    share = (wanted - before) / max(int(histogram.counts[bin_]), 1)
    return float(np.clip((bin_ + share) * histogram.width, histogram.width, histogram.largest))


def _mse(histogram: MagnitudeHistogram) -> float:
    """The threshold of least mean squared error, values taken at the centres of their bins."""
    filled = np.flatnonzero(histogram.counts)
    weights = histogram.counts[filled].astype(np.float64)
    values = ((filled + 0.5) * histogram.width).astype(np.float64)
    candidates = histogram.largest * np.geomspace(1 / _KL_LEVELS, 1.0, _CANDIDATES)
    errors = [float(weights @ (values - _quantized(values, t)) ** 2) for t in candidates]
    return float(candidates[int(np.argmin(errors))])


def _quantized(values: _Floats, clip: float) -> _Floats:
    step = clip / LEVELS
    quantized: _Floats = np.minimum(np.rint(values / step), LEVELS) * step
    return quantized


def _entropy(histogram: MagnitudeHistogram) -> float:
    """The threshold whose quantized distribution tells least from the original (Kullback-Leibler divergence).

    Migacz 2017, "8-bit inference with TensorRT": of the bins below a threshold, P is their share with everything
    beyond added to the last; Q spreads each of 128 merged groups evenly over those of its bins that are not empty.
    Exact zeros are left out, as NVIDIA's tools leave out the first bin: they cost nothing, and ReLU makes so many that
    they would outweigh the rest.
    """
    last = min(int(histogram.largest / histogram.width) + 1, histogram.counts.size)
    if last <= _KL_LEVELS:
        return histogram.largest
    ends = np.unique(np.linspace(_KL_LEVELS, last, _CANDIDATES).astype(int))
    divergences = [_divergence(histogram.counts, int(end)) for end in ends]
    best = int(ends[int(np.argmin(divergences))])
    return float(min(best * histogram.width, histogram.largest))


def _divergence(counts: npt.NDArray[np.int64], end: int) -> float:
    """KL divergence of clipping at the end of bin ``end`` - 1; infinite where Q has nothing and P something."""
    inside = counts[:end].astype(np.float64)
    reference = inside.copy()
    reference[-1] += counts[end:].sum()
    group = np.arange(end) * _KL_LEVELS // end
    filled = inside > 0
    sums = np.bincount(group, inside, _KL_LEVELS)
    members = np.bincount(group, filled, _KL_LEVELS)
    spread = np.where(filled, (sums / np.maximum(members, 1))[group], 0.0)
    seen = reference > 0
    if spread.sum() == 0.0 or (spread[seen] == 0.0).any():
        return float("inf")
    p, q = reference[seen] / reference.sum(), spread[seen] / spread.sum()
    return float((p * np.log(p / q)).sum())


METHODS: Mapping[str, Callable[[MagnitudeHistogram], float]] = MappingProxyType(
    {"entropy": _entropy, "percentile": _percentile, "mse": _mse, "minmax": _minmax}
)
"""By the names that ``--method`` takes."""
