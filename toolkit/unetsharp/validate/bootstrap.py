"""How sure a measure is: the paired bootstrap over patches (Efron and Tibshirani 1993, chapter 13).

Patches are drawn with replacement, the same draw for every network, and the 2.5th and 97.5th percentiles of a measure
over the draws are its 95% interval. Patches of one slide resemble each other, so true intervals are rather wider.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["LEVEL", "RESAMPLES", "Estimate", "estimate", "weightings"]

RESAMPLES = 2000
LEVEL = 0.95
_SEED = 0

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A measured value and the interval that other patches like these would put it in."""

    value: float
    """NaN where it is undefined; infinite for the SNR of equal networks."""
    low: float | None
    """Lower end of the 95% interval; None where there is none: one patch, or too few draws that have a value."""
    high: float | None

    def covers(self, value: float) -> bool:
        """Whether ``value`` lies in the interval, its ends included; False without one."""
        return self.low is not None and self.high is not None and self.low <= value <= self.high


def weightings(patches: int) -> Floats:
    """How often each of N patches counts: first once each, then in `RESAMPLES` draws; float64 [1 + RESAMPLES, N].

    The draws depend on N alone.
    """
    draws = np.random.default_rng(_SEED).multinomial(patches, np.full(patches, 1 / patches), size=RESAMPLES)
    return np.concatenate([np.ones((1, patches)), draws]).astype(np.float64)


def estimate(samples: Floats, patches: int) -> Estimate:
    """The value, which stands first in ``samples`` [1 + RESAMPLES], and its interval from the others."""
    value, drawn = float(samples[0]), samples[1:]
    defined = drawn[~np.isnan(drawn)]
    if patches < 2 or np.isnan(value) or len(defined) < LEVEL * len(drawn):
        return Estimate(value=value, low=None, high=None)
    # No interpolation: an SNR may be infinite.
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    return Estimate(value=value, low=float(low), high=float(high))
