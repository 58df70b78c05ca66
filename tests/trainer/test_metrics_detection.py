"""Detection scores against cases worked out by hand."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetsharp_trainer.metrics.detection import RADIUS_UM, DetectionMatrix, pair_up

NOWHERE = np.zeros((0, 2))
NOTHING = np.zeros(0, dtype=np.uint8)

nuclei = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 4)), max_size=8)


def places(*columns: float) -> npt.NDArray[np.float64]:
    """Centroids on one row."""
    return np.array([(0.0, column) for column in columns]).reshape(-1, 2)


def split(found: list[tuple[int, int, int]]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint8]]:
    table = np.array(found, dtype=np.int64).reshape(-1, 3)
    return table[:, :2].astype(float), table[:, 2].astype(np.uint8)


@pytest.fixture
def by_hand() -> DetectionMatrix:
    """Neoplastic found; neoplastic found as inflammatory; connective missed; two inflammatory invented."""
    matrix = DetectionMatrix()
    matrix.add(places(0, 50, 100), np.array([0, 0, 2]), places(3, 55, 200), np.array([0, 1, 1]))
    matrix.add(NOWHERE, NOTHING, places(10), np.array([1]))
    return matrix


def test_counts_by_hand(by_hand: DetectionMatrix) -> None:
    expected = np.zeros((6, 6), dtype=int)
    expected[0, 0] = expected[0, 1] = expected[2, 5] = 1
    expected[5, 1] = 2
    np.testing.assert_array_equal(by_hand.counts, expected)
    assert by_hand.true_nuclei.tolist() == [2, 0, 1, 0, 0]
    assert by_hand.predicted_nuclei.tolist() == [1, 3, 0, 0, 0]


def test_scores_by_hand(by_hand: DetectionMatrix) -> None:
    assert by_hand.precision() == pytest.approx(2 / 4)
    assert by_hand.recall() == pytest.approx(2 / 3)
    assert by_hand.f1() == pytest.approx(2 * 2 / (2 * 2 + 2 + 1))
    assert by_hand.class_accuracy() == pytest.approx(1 / 2)
    nan = np.nan
    np.testing.assert_allclose(by_hand.class_precision(), [1 / 1, 0 / 4, nan, nan, nan])
    np.testing.assert_allclose(by_hand.class_recall(), [1 / 3, nan, 0, nan, nan])
    np.testing.assert_allclose(by_hand.class_f1(), [2 / (2 + 0 + 2), 0, 0, nan, nan])


def test_the_radius_is_three_micrometres() -> None:
    assert RADIUS_UM / 0.25 == 12
    near, far = pair_up(places(0), places(12)), pair_up(places(0), places(12.01))
    assert [len(true) for true, _ in (near, far)] == [1, 0]


def test_each_nucleus_pairs_once_and_the_sum_of_distances_is_least() -> None:
    true, predicted = pair_up(places(0, 6), places(5, 1, 8))
    assert dict(zip(true.tolist(), predicted.tolist(), strict=True)) == {0: 1, 1: 0}


def test_images_without_nuclei_add_nothing_and_have_no_scores() -> None:
    matrix = DetectionMatrix()
    matrix.add(NOWHERE, NOTHING, NOWHERE, NOTHING)
    assert not matrix.counts.any()
    assert np.isnan([matrix.precision(), matrix.recall(), matrix.f1(), matrix.class_accuracy()]).all()
    assert np.isnan([*matrix.class_precision(), *matrix.class_recall(), *matrix.class_f1()]).all()


@given(nuclei)
def test_a_perfect_detection_scores_one(truth: list[tuple[int, int, int]]) -> None:
    centroids, classes = split(list({(y, x): (y, x, c) for y, x, c in truth}.values()))
    matrix = DetectionMatrix()
    matrix.add(centroids, classes, centroids, classes)
    present = np.isin(np.arange(5), classes)
    np.testing.assert_array_equal(matrix.class_f1(), np.where(present, 1, np.nan))
    np.testing.assert_array_equal(matrix.f1(), 1 if len(classes) else np.nan)


@given(nuclei, nuclei)
def test_sides_swapped_swap_precision_and_recall(
    one: list[tuple[int, int, int]], other: list[tuple[int, int, int]]
) -> None:
    matrix = DetectionMatrix()
    matrix.add(*split(one), *split(other))
    swapped = DetectionMatrix(matrix.counts.T)
    np.testing.assert_array_equal(matrix.class_precision(), swapped.class_recall())
    np.testing.assert_array_equal(matrix.precision(), swapped.recall())
    np.testing.assert_array_equal(matrix.class_f1(), swapped.class_f1())
    assert matrix.true_nuclei.sum() == len(one)
    assert matrix.predicted_nuclei.sum() == len(other)


@given(nuclei, nuclei)
def test_merging_equals_adding(one: list[tuple[int, int, int]], other: list[tuple[int, int, int]]) -> None:
    together, first, second = DetectionMatrix(), DetectionMatrix(), DetectionMatrix()
    for matrix in (together, first):
        matrix.add(*split(one), *split(other))
    for matrix in (together, second):
        matrix.add(*split(other), *split(one))
    np.testing.assert_array_equal((first + second).counts, together.counts)
    np.testing.assert_array_equal((second + first).counts, together.counts)
