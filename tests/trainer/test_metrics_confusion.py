"""Dice and IoU from pixel counts, against tables worked out by hand."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unetsharp_trainer.data.pannuke import UNKNOWN
from unetsharp_trainer.metrics.confusion import ConfusionMatrix, Presence

PIXELS = 60
PAPER_DICE = np.array([0.7767, 0.6343, 0.5828, 0.0, 0.7096])
"""U-Net#'s test table: neoplastic, inflammatory, connective, dead, epithelial."""

Map = npt.NDArray[np.uint8]
targets = hnp.arrays(np.uint8, PIXELS, elements=st.sampled_from([0, 1, 2, 3, 4, 5, UNKNOWN]))
predictions = hnp.arrays(np.uint8, PIXELS, elements=st.integers(0, 5))
pairs = st.tuples(targets, predictions)


def matrix_of(*pairs: tuple[Map, Map]) -> ConfusionMatrix:
    matrix = ConfusionMatrix()
    for target, predicted in pairs:
        matrix.add(target, predicted)
    return matrix


def equal(one: ConfusionMatrix, other: ConfusionMatrix) -> bool:
    return np.array_equal(one.counts, other.counts) and np.array_equal(one.unknown, other.unknown)


@pytest.fixture
def by_hand() -> ConfusionMatrix:
    """Ten pixels: neoplastic 3 (2 right, 1 as connective), inflammatory 2 (missed), background 5 (1 as connective)."""
    target = np.array([[0, 0, 0, 1, 1], [5, 5, 5, 5, 5]])
    predicted = np.array([[0, 0, 2, 5, 5], [5, 5, 5, 5, 2]])
    return matrix_of((target, predicted))


def test_a_table_worked_out_by_hand(by_hand: ConfusionMatrix) -> None:
    assert by_hand.true_pixels.tolist() == [3, 2, 0, 0, 0, 5]
    assert by_hand.predicted_pixels.tolist() == [2, 0, 2, 0, 0, 6]
    nan = np.nan
    np.testing.assert_allclose(by_hand.dice(), [4 / 5, 0, 0, nan, nan, 8 / 11])
    np.testing.assert_allclose(by_hand.iou(), [2 / 3, 0, 0, nan, nan, 4 / 7])
    assert by_hand.pooled_dice() == pytest.approx(2 * 2 / (5 + 4))
    assert by_hand.pooled_iou() == pytest.approx(2 / (5 + 4 - 2))
    assert by_hand.class_mean_dice() == pytest.approx((4 / 5 + 0 + 0) / 3)
    assert by_hand.class_mean_iou() == pytest.approx((2 / 3 + 0 + 0) / 3)
    assert by_hand.foreground_dice() == pytest.approx(2 * 3 / (5 + 4))
    assert by_hand.foreground_iou() == pytest.approx(3 / (5 + 4 - 3))


def test_absent_classes_are_told_from_missed_and_invented_ones(by_hand: ConfusionMatrix) -> None:
    present, invented, absent = Presence.PRESENT, Presence.PREDICTED_ONLY, Presence.ABSENT
    assert by_hand.presence == (present, present, invented, absent, absent, present)


def test_nothing_but_background_leaves_every_nucleus_score_undefined() -> None:
    background = np.full((4, 4), 5, dtype=np.uint8)
    matrix = matrix_of((background, background))
    scores = [matrix.pooled_dice(), matrix.pooled_iou(), matrix.class_mean_dice(), matrix.class_mean_iou()]
    assert np.isnan([*scores, matrix.foreground_dice(), matrix.foreground_iou()]).all()
    assert matrix.dice()[5] == matrix.iou()[5] == 1


def test_unknown_nuclei_count_for_the_foreground_only() -> None:
    target = np.array([UNKNOWN, UNKNOWN, UNKNOWN, 0, 5], dtype=np.uint8)
    predicted = np.array([0, 3, 5, 0, 5], dtype=np.uint8)
    matrix = matrix_of((target, predicted))
    assert matrix.unknown.tolist() == [1, 0, 0, 1, 0, 1]
    assert matrix.dice()[0] == matrix.pooled_dice() == 1
    assert matrix.presence[3] is Presence.ABSENT
    assert matrix.foreground_dice() == pytest.approx(2 * 3 / (4 + 3))
    assert matrix.foreground_dice(unknown_is_nucleus=False) == 1
    assert matrix.foreground_iou() == pytest.approx(3 / 4)


def test_the_papers_two_averages_are_two_definitions() -> None:
    paper_iou = PAPER_DICE / (2 - PAPER_DICE)
    assert PAPER_DICE.mean() == pytest.approx(0.541, abs=5e-4)
    assert paper_iou.mean() == pytest.approx(0.412, abs=5e-4)
    # One pool of counts ties Dice to IoU; the paper's averages obey that to their last digit, the class means do not.
    assert pytest.approx(0.7174, abs=1e-4) == 2 * 0.5593 / (1 + 0.5593)
    assert 2 * paper_iou.mean() / (1 + paper_iou.mean()) - PAPER_DICE.mean() > 0.04


def test_the_papers_class_scores_pool_far_above_their_mean() -> None:
    """PanNuke's nuclei by class stand in for their pixels, which nobody published; neoplastic ones are also larger."""
    true = 100 * np.array([77_403, 32_276, 50_585, 2_908, 26_572])
    right = np.rint(PAPER_DICE * true).astype(np.int64)
    counts = np.zeros((6, 6), dtype=np.int64)
    counts[range(5), range(5)] = right
    counts[5, :5] = counts[:5, 5] = true - right  # as many pixels missed as invented: Dice is right / true
    matrix = ConfusionMatrix(counts)
    np.testing.assert_allclose(matrix.dice()[:5], PAPER_DICE, atol=1e-6)
    assert matrix.class_mean_dice() == pytest.approx(0.541, abs=5e-4)
    assert matrix.class_mean_iou() == pytest.approx(0.412, abs=5e-4)
    assert matrix.pooled_dice() == pytest.approx(np.average(PAPER_DICE, weights=true), abs=1e-6)
    assert 0.67 < matrix.pooled_dice() < 0.7174 < PAPER_DICE.max()


@given(st.lists(pairs, min_size=1, max_size=4))
def test_merging_equals_adding_in_any_order_and_grouping(batches: list[tuple[Map, Map]]) -> None:
    whole = matrix_of(*batches)
    assert equal(whole, matrix_of(*reversed(batches)))
    assert equal(whole, matrix_of((np.concatenate([t for t, _ in batches]), np.concatenate([p for _, p in batches]))))
    one, two, three = matrix_of(batches[0]), matrix_of(*batches[1:]), matrix_of(batches[-1])
    assert equal(one + two, whole)
    assert equal((one + two) + three, one + (two + three))
    assert equal(one + two, two + one)


@given(pairs, st.permutations(range(PIXELS)))
def test_where_pixels_lie_does_not_matter(pair: tuple[Map, Map], order: list[int]) -> None:
    target, predicted = pair
    assert equal(matrix_of(pair), matrix_of((target[order], predicted[order])))


@given(pairs, st.permutations(range(5)))
def test_renaming_nucleus_classes_renames_their_scores(pair: tuple[Map, Map], names: list[int]) -> None:
    table = np.arange(256, dtype=np.uint8)
    table[:5] = names
    before, after = matrix_of(pair), matrix_of((table[pair[0]], table[pair[1]]))
    np.testing.assert_array_equal(after.dice()[names], before.dice()[:5])
    for score in (ConfusionMatrix.pooled_iou, ConfusionMatrix.foreground_dice, ConfusionMatrix.class_mean_dice):
        np.testing.assert_allclose(score(after), score(before), rtol=1e-12)


@given(pairs)
def test_scores_are_in_bounds_and_tied(pair: tuple[Map, Map]) -> None:
    matrix = matrix_of(pair)
    dice, iou = matrix.dice(), matrix.iou()
    seen = ~np.isnan(dice)
    assert ((dice[seen] >= 0) & (dice[seen] <= 1)).all()
    np.testing.assert_allclose(dice, 2 * iou / (1 + iou))
    np.testing.assert_allclose(matrix.pooled_dice(), 2 * matrix.pooled_iou() / (1 + matrix.pooled_iou()))


@given(predictions)
def test_a_perfect_prediction_scores_one_wherever_a_class_is_present(truth: Map) -> None:
    matrix = matrix_of((truth, truth))
    present = [presence is Presence.PRESENT for presence in matrix.presence]
    np.testing.assert_array_equal(matrix.dice(), np.where(present, 1, np.nan))


@pytest.mark.parametrize(
    ("target", "predicted", "message"),
    [
        (np.zeros(3, np.uint8), np.zeros(4, np.uint8), "must be alike"),
        (np.zeros(3), np.zeros(3, np.uint8), "integer channels"),
        (np.array([6]), np.array([0]), "target has values"),
        (np.array([-1]), np.array([0]), "target has values"),
        (np.array([0]), np.array([UNKNOWN]), "predicted has values"),
    ],
)
def test_what_is_no_class_map_is_refused(target: Map, predicted: Map, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConfusionMatrix().add(target, predicted)
