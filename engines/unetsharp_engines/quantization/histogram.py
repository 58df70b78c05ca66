"""How large a tensor's values are: a histogram of |x| that grows with what it meets, so that one pass suffices."""

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from unetsharp_engines.errors import InputError

__all__ = ["BINS", "MagnitudeHistogram"]

BINS = 8192
"""Bins of a histogram: 64 for each of the 128 magnitudes of INT8, at the largest threshold."""

_BLOCK = 1 << 20
"""Values binned at once, so that temporary memory is a few megabytes."""

_LEAST_EXPONENT = -60
"""Ranges below 2^-60 are of no use to a float32 scale."""


@dataclass(eq=False)
class MagnitudeHistogram:
    """Counts of |x| in `BINS` equal bins over [0, 2^exponent), and of exact zeros apart.

    Zeros are apart because INT8 holds them without error, and ReLU makes many. The range is a power of two, so it grows
    by adding neighbouring bins, without loss: feeding values in any order and any portions gives the same histogram.
    Memory is 64 KB, however many values.
    """

    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    """Bin i holds [i, i + 1) · 2^exponent / BINS; bin 0 without exact zeros."""
    exponent: int = _LEAST_EXPONENT
    zeros: int = 0
    largest: float = 0.0
    """Largest |x|, exactly."""

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent) / BINS

    @property
    def total(self) -> int:
        """Values seen, zeros included."""
        return int(self.counts.sum()) + self.zeros

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Count float32 values of any shape. Raises InputError where one is no finite number."""
        flat = values.reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            self._add_block(np.abs(flat[start : start + _BLOCK]))

    def __add__(self, other: "MagnitudeHistogram") -> "MagnitudeHistogram":
        """The histogram of all values of both."""
        exponent = max(self.exponent, other.exponent)
        return MagnitudeHistogram(
            _coarsened(self.counts, exponent - self.exponent) + _coarsened(other.counts, exponent - other.exponent),
            exponent,
            self.zeros + other.zeros,
            max(self.largest, other.largest),
        )

    def _add_block(self, magnitudes: npt.NDArray[np.float32]) -> None:
        largest = float(magnitudes.max(initial=0.0))
        if not math.isfinite(largest):
            raise InputError("the network computes numbers that are not finite; calibrate one that does not")
        self._grow(math.frexp(largest)[1] if largest else _LEAST_EXPONENT)  # largest < 2^that
        self.largest = max(self.largest, largest)
        # A power of two times a float32 is exact, so no value lands in its neighbour's bin.
        bins = (magnitudes * np.float32(1.0 / self.width)).astype(np.int32)
        counts = np.bincount(bins, minlength=BINS)
        zeros = magnitudes.size - int(np.count_nonzero(magnitudes))
        counts[0] -= zeros
        self.zeros += zeros
        self.counts += counts

    def _grow(self, exponent: int) -> None:
        if exponent > self.exponent:
            self.counts = _coarsened(self.counts, exponent - self.exponent)
            self.exponent = exponent


def _coarsened(counts: npt.NDArray[np.int64], doublings: int) -> npt.NDArray[np.int64]:
    """Counts over a range 2^doublings as large."""
    coarse = np.zeros(BINS, np.int64)
    together = min(1 << min(doublings, 62), BINS)
    coarse[: BINS // together] = counts.reshape(-1, together).sum(axis=1)
    return coarse
