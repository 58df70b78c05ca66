"""Histograms and thresholds against closed forms and brute force."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from unetsharp_engines.errors import InputError
from unetsharp_engines.quantization.histogram import BINS, MagnitudeHistogram
from unetsharp_engines.quantization.thresholds import LEVELS, METHODS, PERCENTILE, threshold

VALUES = arrays(
    np.float32,
    st.integers(1, 60),
    elements=st.one_of(
        st.just(0.0),
        st.floats(-(2.0**40), 2.0**40, width=32),
        st.floats(-1.0, 1.0, width=32),
    ),
)


def histogram_of(values: np.ndarray) -> MagnitudeHistogram:
    histogram = MagnitudeHistogram()
    histogram.add(values.astype(np.float32))
    return histogram


def assert_equal(a: MagnitudeHistogram, b: MagnitudeHistogram) -> None:
    assert (a.exponent, a.zeros, a.largest) == (b.exponent, b.zeros, b.largest)
    np.testing.assert_array_equal(a.counts, b.counts)


@settings(max_examples=200, deadline=None)
@given(VALUES, VALUES)
def test_portions_in_any_order_and_merging_equal_one_shot(first: np.ndarray, second: np.ndarray):
    whole = histogram_of(np.concatenate([first, second]))
    backwards = histogram_of(second)
    backwards.add(first)
    assert_equal(backwards, whole)
    assert_equal(histogram_of(first) + histogram_of(second), whole)
    assert whole.total == first.size + second.size


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_every_value_lies_in_its_bin(values: np.ndarray):
    histogram = histogram_of(values)
    magnitudes = np.abs(values[values != 0]).astype(np.float64)
    expected = np.bincount((magnitudes / histogram.width).astype(int), minlength=BINS)
    np.testing.assert_array_equal(histogram.counts, expected)
    assert histogram.largest == np.abs(values).max()
    assert histogram.largest < 2.0**histogram.exponent


def test_more_values_than_a_block_are_counted():
    histogram = histogram_of(np.full((3, 700_000), -0.75))
    assert histogram.total == 2_100_000
    assert histogram.counts[int(0.75 * BINS)] == 2_100_000


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_refused(bad: float):
    with pytest.raises(InputError, match="not finite"):
        histogram_of(np.array([1.0, bad]))


def test_minmax_is_the_exact_largest_magnitude():
    assert threshold(histogram_of(np.array([0.1, -3.3, 2.0])), "minmax") == np.float32(3.3)


def test_percentile_of_a_uniform_distribution():
    values = np.linspace(-5.0, 5.0, 2_000_001)
    assert threshold(histogram_of(values), "percentile") == pytest.approx(5.0 * PERCENTILE / 100, rel=1e-4)


def test_percentile_counts_zeros():
    half_zero = np.concatenate([np.zeros(1_000_000), np.linspace(0.0, 1.0, 1_000_001)[1:]])
    assert threshold(histogram_of(half_zero), "percentile") == pytest.approx(1 - 2 * (1 - PERCENTILE / 100), rel=1e-4)


def squared_error(values: np.ndarray, clip: float) -> float:
    step = clip / LEVELS
    return float(((values - np.clip(np.rint(values / step), -LEVELS, LEVELS) * step) ** 2).mean())


@pytest.mark.parametrize("draw", ["laplace", "normal", "lognormal"])
def test_mse_is_as_good_as_brute_force_on_the_values_themselves(draw: str):
    values = getattr(np.random.default_rng(1), draw)(size=100_000)
    chosen = threshold(histogram_of(values), "mse")
    best = min(squared_error(values, clip) for clip in np.linspace(0.02, 1.0, 400) * np.abs(values).max())
    assert squared_error(values, chosen) <= 1.01 * best
    assert chosen < np.abs(values).max()


def test_mse_of_a_laplace_distribution_is_the_known_optimum():
    """Minimize clipping 2·exp(-t) plus rounding (t/127)²/12 for scale 1: 2·exp(-t) = t/(6·127²)."""
    optimum = 8.0
    for _ in range(100):
        optimum = math.log(12 * LEVELS**2 / optimum)
    values = np.random.default_rng(0).laplace(size=4_000_000)
    assert threshold(histogram_of(values), "mse") == pytest.approx(optimum, rel=0.05)


def brute_force_divergence(counts: list[int], end: int) -> float:
    """KL divergence spelt out bin by bin."""
    groups: dict[int, list[int]] = {}
    for bin_ in range(end):
        groups.setdefault(bin_ * (LEVELS + 1) // end, []).append(bin_)
    q = [0.0] * end
    for bins in groups.values():
        filled = [b for b in bins if counts[b]]
        for b in filled:
            q[b] = sum(counts[i] for i in bins) / len(filled)
    p = [float(c) for c in counts[:end]]
    p[-1] += sum(counts[end:])
    if any(a > 0 and b == 0 for a, b in zip(p, q, strict=True)):
        return math.inf
    return sum(a / sum(p) * math.log(a / sum(p) * sum(q) / b) for a, b in zip(p, q, strict=True) if a)


@pytest.mark.parametrize("seed", range(3))
def test_entropy_is_the_least_divergence_by_brute_force(seed: int):
    values = np.random.default_rng(seed).standard_t(3, size=20_000)
    histogram = histogram_of(values)
    counts = histogram.counts.tolist()
    chosen = threshold(histogram, "entropy")
    last = int(histogram.largest / histogram.width) + 1
    least = min(brute_force_divergence(counts, end) for end in range(LEVELS + 1, last + 1, 16))
    assert brute_force_divergence(counts, round(chosen / histogram.width)) <= 1.01 * least
    assert LEVELS * histogram.width < chosen < histogram.largest


@pytest.mark.parametrize("method", METHODS)
def test_scaling_a_tensor_scales_its_threshold(method: str):
    values = np.random.default_rng(0).laplace(size=50_000).astype(np.float32)
    assert threshold(histogram_of(values * 1024), method) == pytest.approx(
        1024 * threshold(histogram_of(values), method)
    )


@pytest.mark.parametrize("method", METHODS)
def test_tensors_of_one_value_and_of_none(method: str):
    assert threshold(histogram_of(np.zeros(9)), method) == 1.0
    assert threshold(histogram_of(np.full(9, -2.5)), method) == pytest.approx(2.5, rel=0.01)
