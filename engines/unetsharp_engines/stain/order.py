"""Order statistics: the percentiles of Macenko's method."""

import math

import numpy as np
import numpy.typing as npt

__all__ = ["nearest_rank"]

_STRIDE = 64
_SLACK = 0.02
"""Share of the sample by which the bracket exceeds the rank on either side: about 6 standard errors at rank 1%."""


def nearest_rank(values: npt.NDArray[np.float64], percent: float) -> float:
    """The one of ``values``, float64 (N,), N ≥ 1, whose rank is nearest to ``percent`` (0 to 100); no interpolation.

    torchstain's percentile. Exact, by selection within a bracket that a sample suggests (Floyd and Rivest 1975), most
    of the values being counted, not moved; should the rank not lie in the bracket, all values are partitioned.
    """
    rank = round(0.01 * percent * (values.size - 1))
    low, high = _bracket(values, rank)
    below = np.count_nonzero(values < low)
    inside = values[(values >= low) & (values <= high)]
    if below <= rank < below + inside.size:
        return _select(inside, rank - below)
    return _select(values, rank)


def _bracket(values: npt.NDArray[np.float64], rank: int) -> tuple[float, float]:
    """Two values between which the one of ``rank`` most likely lies."""
    sample = np.sort(values[::_STRIDE])
    middle = rank / _STRIDE
    slack = _SLACK * sample.size
    low, high = (math.floor(at) for at in (middle - slack, middle + slack + 1))
    return (
        -np.inf if low < 0 else float(sample[low]),
        np.inf if high >= sample.size else float(sample[high]),
    )


def _select(values: npt.NDArray[np.float64], rank: int) -> float:
    return float(np.partition(values, rank)[rank])
