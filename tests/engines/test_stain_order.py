"""Order statistics: always the very value that sorting finds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unetsharp_engines.stain.order import nearest_rank

PERCENTS = (0.0, 1.0, 50.0, 99.0, 100.0)


def by_sorting(values: np.ndarray, percent: float) -> float:
    return np.sort(values)[round(0.01 * percent * (values.size - 1))]


@given(
    values=hnp.arrays(np.float64, st.integers(1, 3000), elements=st.floats(-10, 10, width=16)),
    percent=st.sampled_from(PERCENTS),
)
def test_is_what_sorting_finds(values: np.ndarray, percent: float) -> None:
    before = values.copy()
    assert nearest_rank(values, percent) == by_sorting(values, percent)
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("percent", PERCENTS)
@pytest.mark.parametrize("period", [63, 64, 128])
def test_is_exact_where_the_sample_misleads(percent: float, period: int) -> None:
    """A picture as wide as the sampling stride: the sample sees one column only."""
    values = np.tile(np.linspace(-1, 1, period), 100) + np.linspace(0, 1e-3, 100 * period)
    assert nearest_rank(values, percent) == by_sorting(values, percent)


@pytest.mark.parametrize("percent", PERCENTS)
def test_is_exact_on_a_large_sample(percent: float) -> None:
    values = np.random.default_rng(1).normal(size=300_000)
    assert nearest_rank(values, percent) == by_sorting(values, percent)
