"""Panoptic quality, by hand. Equality with PanNuke's official script: benchmarks/panoptic_peer.py."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unetsharp_trainer.metrics.instances import by_class, centroids, judged, merged
from unetsharp_trainer.metrics.panoptic import PanopticTable, panoptic_quality

Map = npt.NDArray[np.int64]
maps = hnp.arrays(np.int64, (6, 7), elements=st.integers(0, 4))
EPSILON = 2e-6
"""The official script's 1e-6 beside one match keeps a perfect PQ this close to 1."""


def strip(*ids: int) -> Map:
    """A map one pixel high."""
    return np.array([ids])


def test_identical_nuclei_score_one() -> None:
    truth = strip(1, 1, 0, 7, 7, 7)
    assert panoptic_quality(truth, truth) == pytest.approx(1, abs=EPSILON)


def test_one_found_one_missed_one_invented() -> None:
    truth = strip(1, 1, 1, 0, 2, 2, 0, 0)
    predicted = strip(1, 1, 0, 0, 0, 0, 9, 9)  # IoU 2/3 with nucleus 1
    assert panoptic_quality(truth, predicted) == pytest.approx((2 / 3) * 1 / (1 + 0.5 + 0.5), abs=EPSILON)


def test_an_iou_of_exactly_one_half_is_no_match() -> None:
    assert panoptic_quality(strip(1, 1, 0), strip(1, 0, 0)) == 0
    assert panoptic_quality(strip(1, 1, 1), strip(1, 1, 0)) == pytest.approx(2 / 3, abs=EPSILON)


def test_a_nucleus_split_in_two_matches_only_the_larger_part() -> None:
    truth, predicted = strip(1, 1, 1, 1, 1), strip(1, 1, 1, 2, 2)
    assert panoptic_quality(truth, predicted) == pytest.approx((3 / 5) * 1 / 1.5, abs=EPSILON)


def test_an_image_without_true_nuclei_has_no_score_and_one_without_predictions_scores_zero() -> None:
    empty, nucleus = strip(0, 0), strip(1, 0)
    assert np.isnan(panoptic_quality(empty, empty))
    assert np.isnan(panoptic_quality(empty, nucleus))
    assert panoptic_quality(nucleus, empty) == 0


def test_maps_without_any_background_are_judged() -> None:
    assert panoptic_quality(strip(4, 4, 9), strip(2, 2, 3)) == pytest.approx(1, abs=EPSILON)


def test_shapes_must_be_alike() -> None:
    with pytest.raises(ValueError, match="must be alike"):
        panoptic_quality(strip(1, 0), strip(1))


@given(maps)
def test_any_map_is_identical_to_itself(truth: Map) -> None:
    expected = 1 if truth.any() else np.nan
    np.testing.assert_allclose(panoptic_quality(truth, truth), expected, atol=EPSILON)


@given(maps, maps, st.permutations(range(1, 5)), st.integers(1, 10**6))
def test_ids_are_only_names(truth: Map, predicted: Map, names: list[int], step: int) -> None:
    table = np.array([0, *names]) * step
    renamed = panoptic_quality(table[truth], table[predicted])
    np.testing.assert_allclose(renamed, panoptic_quality(truth, predicted), rtol=1e-12)


@given(maps, maps)
def test_pq_is_symmetric_where_both_have_nuclei(truth: Map, predicted: Map) -> None:
    forth, back = panoptic_quality(truth, predicted), panoptic_quality(predicted, truth)
    if truth.any() and predicted.any():
        assert forth == pytest.approx(back, rel=1e-12)
        assert 0 <= forth <= 1


@given(maps, maps)
def test_it_equals_the_definition_spelled_out(truth: Map, predicted: Map) -> None:
    true_ids, ids = set(truth.flat) - {0}, set(predicted.flat) - {0}
    ious = [
        ((truth == t) & (predicted == p)).sum() / ((truth == t) | (predicted == p)).sum() for t in true_ids for p in ids
    ]
    matched = [iou for iou in ious if iou > 0.5]
    quality = sum(matched) / ((len(true_ids) + len(ids)) / 2) if true_ids else np.nan
    np.testing.assert_allclose(panoptic_quality(truth, predicted), quality, atol=EPSILON)


def image(neoplastic: Map, inflammatory: Map) -> Map:
    none = np.zeros_like(neoplastic)
    return np.stack([neoplastic, inflammatory, none, none, none], axis=-1)


@pytest.fixture
def table() -> PanopticTable:
    """Colon: a perfect image, and one whose only class is missed. Breast: invented nuclei only. Skin: nothing."""
    nucleus, empty = strip(1, 1, 0), strip(0, 0, 0)
    table = PanopticTable()
    table.add("Colon", image(nucleus, strip(0, 0, 5)), image(nucleus, strip(0, 0, 5)))
    table.add("Colon", image(nucleus, empty), image(empty, nucleus))
    table.add("Breast", image(empty, empty), image(nucleus, empty))
    table.add("Skin", image(nucleus, strip(0, 0, 1)), image(nucleus, empty))
    return table


def test_tissues_worked_out_by_hand(table: PanopticTable) -> None:
    rows = {row.tissue: row for row in table.by_tissue()}
    assert list(rows) == ["Breast", "Colon", "Skin"]
    assert [row.images for row in rows.values()] == [1, 2, 1]
    # second Colon image: the nucleus is found (bPQ 1) and called by the wrong name (mPQ 0)
    assert rows["Colon"].mpq == pytest.approx((1 + 0) / 2, abs=EPSILON)
    assert rows["Colon"].bpq == pytest.approx((1 + 1) / 2, abs=EPSILON)
    assert np.isnan([rows["Breast"].mpq, rows["Breast"].bpq]).all()
    assert rows["Skin"].mpq == pytest.approx((1 + 0) / 2, abs=EPSILON)
    assert rows["Skin"].bpq == pytest.approx(1 / 1.5, abs=EPSILON)


def test_means_leave_out_what_has_no_truth(table: PanopticTable) -> None:
    assert table.mpq() == pytest.approx((0.5 + 0.5) / 2, abs=EPSILON)
    assert table.bpq() == pytest.approx((1 + 1 / 1.5) / 2, abs=EPSILON)
    np.testing.assert_allclose(table.class_pq(), [2 / 3, 1 / 2, np.nan, np.nan, np.nan], atol=EPSILON)


def test_tables_merge_and_an_empty_one_has_no_scores(table: PanopticTable) -> None:
    assert (table + PanopticTable()).by_tissue()[1] == table.by_tissue()[1]
    assert (table + table).mpq() == pytest.approx(table.mpq())
    assert (table + table).by_tissue()[1].images == 4
    assert np.isnan([PanopticTable().mpq(), PanopticTable().bpq(), *PanopticTable().class_pq()]).all()


def test_class_maps_and_merged_maps_say_the_same_nuclei() -> None:
    instances = np.array([[1, 1, 2], [0, 3, 3]])
    ids = by_class(instances, np.array([4, 0, 4], dtype=np.uint8))
    assert ids.shape == (2, 3, 5)
    assert ids[..., 4].tolist() == [[1, 1, 0], [0, 3, 3]]
    assert ids[..., 0].tolist() == [[0, 0, 2], [0, 0, 0]]
    assert panoptic_quality(instances, merged(ids)) == pytest.approx(1, abs=EPSILON)
    assert not by_class(np.zeros((2, 2), np.int32), np.array([], dtype=np.uint8)).any()


def test_in_a_merged_map_equal_ids_of_two_classes_are_two_nuclei_and_the_later_class_is_on_top() -> None:
    both = merged(image(strip(1, 1, 0, 0), strip(0, 1, 1, 0)))
    assert both[0, 0] != both[0, 1] == both[0, 2] != 0 == both[0, 3]


def test_predictions_mostly_on_unknown_nuclei_are_not_judged() -> None:
    predicted = strip(1, 1, 1, 2, 2, 3, 0)
    unknown = strip(0, 1, 1, 1, 0, 0, 1).astype(bool)  # 2 of 3, 1 of 2, 0 of 1 pixels
    assert judged(predicted, unknown).tolist() == [[0, 0, 0, 2, 2, 3, 0]]
    assert judged(predicted, np.zeros_like(unknown)).tolist() == predicted.tolist()


def test_centroids_are_means_of_pixel_places() -> None:
    ids, places = centroids(np.array([[5, 5, 0], [5, 5, 0], [0, 0, 2]]))
    assert ids.tolist() == [2, 5]
    assert places.tolist() == [[2, 2], [0.5, 0.5]]
    ids, places = centroids(np.zeros((3, 3), dtype=np.int32))
    assert ids.shape == (0,)
    assert places.shape == (0, 2)
