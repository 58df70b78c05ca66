"""Scores of which some are undefined: NaN, and said so, never 0 or 1 in silence."""

import numpy as np
import numpy.typing as npt

__all__ = ["mean_of_defined", "ratio"]


def ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """``part / whole`` of counts, NaN where ``whole`` is 0. Shapes broadcast."""
    return np.where(np.asarray(whole) == 0, np.nan, np.asarray(part) / np.maximum(whole, 1))


def mean_of_defined(scores: npt.NDArray[np.float64]) -> float:
    """Mean of the scores that are not NaN; NaN where there are none (`numpy.nanmean` warns then)."""
    defined = scores[~np.isnan(scores)]
    return float(defined.mean()) if defined.size else float("nan")
