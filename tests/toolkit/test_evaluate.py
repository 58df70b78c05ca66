"""Evaluation against tables worked out by hand, on patches whose predictions are painted."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from support.painted_folds import PAINTER_INFO, TruthAndSaid, fold_of
from support.pannuke_folds import released, save
from unetsharp.evaluate.confusion_picture import CELL, EMPTY, HEADER, LABELS, confusion_picture
from unetsharp.evaluate.evaluation import Evaluation, Patch, Scores
from unetsharp.evaluate.examples_picture import chosen, examples_picture
from unetsharp.evaluate.folds import open_fold_numbers
from unetsharp.evaluate.run import evaluate, predict, stain_as_trained
from unetsharp.evaluate.sheet import MARGIN
from unetsharp.evaluate.tables import markdown
from unetsharp_engines.contract import class_named
from unetsharp_engines.errors import InputError
from unetsharp_engines.model_info import ModelInfo
from unetsharp_engines.runtimes.fake import FakeRuntime
from unetsharp_trainer.data.pannuke import Fold
from unetsharp_trainer.metrics.panoptic import PanopticTable

EPSILON = 2e-6
"""The official PQ's own deviation from 1."""

COLON: TruthAndSaid = (
    "Colon",
    [("Neoplastic", 10, 10, 20), ("Inflammatory", 100, 100, 16)],
    [("Neoplastic", 10, 10, 20), ("Connective", 100, 100, 16)],
)
"""One nucleus right, one by a wrong name."""
BREAST: TruthAndSaid = (
    "Breast",
    [("Connective", 50, 50, 20)],
    [("Connective", 50, 52, 20), ("Epithelial", 220, 20, 10), ("Dead", 150, 150, 30)],
)
"""One nucleus 2 px off, one invented, and one on a nucleus of unknown class."""
EMPTY_SKIN: TruthAndSaid = ("Skin", [], [])


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> list[Fold]:
    root = tmp_path_factory.mktemp("pannuke")
    released(root, 3, fold_of([COLON, BREAST, EMPTY_SKIN]))
    unknown = np.zeros((3, 256, 256), dtype=bool)
    unknown[1, 150:180, 150:180] = True
    save(root / "Fold 3" / "ignore.npy", unknown)
    return open_fold_numbers(root, "3")


@pytest.fixture(scope="module")
def runtime() -> FakeRuntime:
    return FakeRuntime(PAINTER_INFO)


@pytest.fixture(scope="module")
def evaluation(folds: list[Fold], runtime: FakeRuntime) -> Evaluation:
    return evaluate(runtime, folds)


def test_pixels_by_hand(evaluation: Evaluation) -> None:
    pixels = evaluation.to_dict()["pixels"]
    classes = pixels["classes"]
    assert [row["presence"] for row in classes.values()] == [
        *["present"] * 3,
        "absent",
        "predicted only",
        "present",
    ]
    assert [row["true_pixels"] for row in classes.values()][:5] == [400, 256, 400, 0, 0]
    assert [row["predicted_pixels"] for row in classes.values()][:5] == [400, 0, 256 + 400, 0, 100]
    assert classes["Neoplastic"]["dice"] == classes["Neoplastic"]["iou"] == 1
    assert classes["Inflammatory"]["dice"] == 0
    assert classes["Connective"]["dice"] == pytest.approx(2 * 360 / (400 + 656))
    assert classes["Connective"]["iou"] == pytest.approx(360 / (400 + 656 - 360))
    assert classes["Dead"]["dice"] is classes["Dead"]["iou"] is None
    assert classes["Epithelial"]["dice"] == 0
    background = 3 * 256 * 256 - 400 - 256 - 400 - 900
    assert classes["Background"]["dice"] == pytest.approx(2 * (background - 40 - 100) / (2 * background - 100))


def test_the_two_averages_and_the_foreground_by_hand(evaluation: Evaluation) -> None:
    pixels = evaluation.to_dict()["pixels"]
    pooled = pixels["average_without_background_pooled"]
    right, true, said = 400 + 360, 400 + 256 + 400, 400 + 656 + 100
    assert pooled["dice"] == pytest.approx(2 * right / (true + said))
    assert pooled["iou"] == pytest.approx(right / (true + said - right))
    mean = pixels["average_without_background_class_mean"]
    assert mean["dice"] == pytest.approx((1 + 0 + 2 * 360 / 1056 + 0) / 4)
    found = right + 256 + 900
    assert pixels["foreground"]["dice"] == pytest.approx(2 * found / (true + 900 + said + 900))
    assert pixels["unknown_class_pixels"] == pixels["unknown_class_pixels_found"] == 900


def test_nuclei_by_hand(evaluation: Evaluation) -> None:
    nuclei = evaluation.to_dict()["nuclei"]
    expected = np.zeros((6, 6), dtype=int)
    expected[0, 0] = expected[1, 2] = expected[2, 2] = expected[5, 4] = 1
    assert nuclei["confusion"] == expected.tolist()
    detection = nuclei["detection"]
    assert (detection["true"], detection["predicted"], detection["not_judged"]) == (3, 4, 1)
    assert detection["precision"] == pytest.approx(3 / 4)
    assert detection["recall"] == 1
    assert detection["class_accuracy"] == pytest.approx(2 / 3)
    connective = nuclei["classes"]["Connective"]
    assert connective["precision"] == pytest.approx(1 / (1 + 2))
    assert connective["recall"] == 1
    assert nuclei["classes"]["Dead"] == {
        "presence": "absent", "true": 0, "predicted": 0, "precision": None, "recall": None, "f1": None
    }  # fmt: skip


def test_panoptic_quality_by_hand(evaluation: Evaluation) -> None:
    result = evaluation.to_dict()
    shifted = 360 / 440
    tissues = result["tissues"]
    assert tissues["Colon"]["bpq"] == pytest.approx(1, abs=EPSILON)
    assert tissues["Colon"]["mpq"] == pytest.approx(0.5, abs=EPSILON)
    assert tissues["Breast"]["bpq"] == pytest.approx(shifted / 1.5, abs=EPSILON)
    assert tissues["Breast"]["mpq"] == pytest.approx(shifted, abs=EPSILON)
    assert tissues["Skin"]["bpq"] is tissues["Skin"]["mpq"] is None
    assert result["panoptic"]["bpq"] == pytest.approx((1 + shifted / 1.5) / 2, abs=EPSILON)
    assert result["panoptic"]["mpq"] == pytest.approx((0.5 + shifted) / 2, abs=EPSILON)


def test_tissues_add_up(evaluation: Evaluation) -> None:
    result = evaluation.to_dict()
    tissues = result["tissues"].values()
    assert sum(tissue["patches"] for tissue in tissues) == result["patches"] == 3
    for part in ("pixels", "nuclei"):
        total = np.array([tissue[part]["confusion"] for tissue in tissues]).sum(axis=0)
        assert total.tolist() == result[part]["confusion"]


def test_markdown_says_absent_invented_and_undefined(evaluation: Evaluation) -> None:
    lines = markdown(evaluation).splitlines()
    assert "| Dead | 0 | 0 | absent | absent |" in lines
    assert "| Epithelial * | 0 | 100 | 0.0000 | 0.0000 |" in lines
    assert "| Without background, class mean of 4 |  |  | 0.3793 | 0.4205 |" in lines
    assert "| Dead | 0 | 0 | absent | absent | absent | absent |" in lines
    assert "| Epithelial | 0 | 1 | 0.0000 | – | 0.0000 | – |" in lines
    assert "| Skin | 1 | – | – | – | – | – |" in lines
    assert not any("Paper" in line or "never showed" in line for line in lines)


def test_classes_that_were_never_taught_are_named(evaluation: Evaluation) -> None:
    untaught = dataclasses.replace(PAINTER_INFO, untaught=("Dead", "Epithelial"))
    text = markdown(dataclasses.replace(evaluation, model=untaught))
    assert "This network's training data never showed it: Dead, Epithelial." in text.splitlines()


def test_the_papers_numbers_stand_beside_its_own_test_fold_only() -> None:
    def text(fold: int, patches: int) -> str:
        rows = [Patch(fold=fold, index=index, tissue="Colon") for index in range(patches)]
        table = PanopticTable(["Colon"] * patches, [0.5] * patches, [[0.5] * 5] * patches)
        scores = {"Colon": Scores(patches)}
        return markdown(Evaluation(model=PAINTER_INFO, runtime="", patches=rows, tissues=scores, panoptic=table))

    assert "| Without background, pooled |  |  | – | – | 0.5593 | 0.7174 |" in text(3, 2722).splitlines()
    assert "Paper" not in text(3, 2721)
    assert "Paper" not in text(1, 2722)


def test_confusion_picture_shows_shares_and_absences(evaluation: Evaluation) -> None:
    picture = confusion_picture(evaluation)
    left = MARGIN + LABELS
    top = picture.height - MARGIN - 6 * CELL

    def cell(row: int, column: int) -> tuple[int, ...]:
        color = picture.getpixel((left + column * CELL + 14, top + row * CELL + 14))
        assert isinstance(color, tuple)
        return color

    assert cell(3, 0) == cell(4, 4) == EMPTY  # dead and epithelial: not in the truth
    assert sum(cell(0, 0)) == sum(cell(1, 2)) < sum(cell(2, 2)) < sum(cell(2, 5)) < sum(cell(0, 1))
    assert picture.height == top + 6 * CELL + MARGIN > HEADER


def test_examples_are_the_extremes_and_quartiles_of_what_can_be_ranked() -> None:
    binary = [float("nan"), 0.5, 0.1, 0.9, 0.3, 0.7]
    evaluation = Evaluation(model=PAINTER_INFO, runtime="", panoptic=PanopticTable(["x"] * 6, binary, [[0.0] * 5] * 6))
    names = ["worst", "lower quartile", "median", "upper quartile", "best"]
    assert chosen(evaluation) == list(zip(names, [2, 4, 1, 5, 3], strict=True))
    one = Evaluation(model=PAINTER_INFO, runtime="", panoptic=PanopticTable(["x"], [0.4], [[0.0] * 5]))
    assert chosen(one) == [("worst", 0)]
    assert chosen(Evaluation(model=PAINTER_INFO, runtime="")) == []


def test_examples_picture_outlines_truth_and_prediction(
    evaluation: Evaluation, runtime: FakeRuntime, folds: list[Fold]
) -> None:
    picture = np.asarray(examples_picture(evaluation, runtime, folds))
    assert picture.shape[1] == 3 * 512 + 2 * 12 + 2 * MARGIN
    worst = picture[: picture.shape[0] // 2]  # Breast, above Colon
    truth, said = worst[300:, 600:1050], worst[300:, 1100:]
    for panel, name, there in [(truth, "Epithelial", False), (said, "Epithelial", True), (truth, "Connective", True)]:
        color = np.array(class_named(name).color)
        assert (panel == color).all(axis=-1).any() == there


def test_patches_are_normalized_as_in_training() -> None:
    assert not stain_as_trained(PAINTER_INFO).per_tile
    macenko = ModelInfo(name="x", encoder="x", width=1, train_size=256)
    assert stain_as_trained(macenko).per_tile


def test_prediction_does_not_depend_on_the_batch(folds: list[Fold], runtime: FakeRuntime) -> None:
    together = list(predict(runtime, folds[0], range(3)))
    for index, one in enumerate(together):
        (alone,) = predict(runtime, folds[0], [index])
        np.testing.assert_array_equal(alone.channels, one.channels)
        np.testing.assert_array_equal(alone.instances, one.instances)
    assert together[1].classes.tolist() == [2, 3, 4]


def test_progress_is_told_of_every_patch(folds: list[Fold], runtime: FakeRuntime) -> None:
    done: list[int] = []
    evaluate(runtime, folds, done.append)
    assert sum(done) == 3


@pytest.mark.parametrize("text", ["4", "0+3", "three", "3,", ""])
def test_folds_that_are_not_there_are_named(folds: list[Fold], text: str) -> None:
    root = Path(folds[0].files.masks.path).parents[3]
    with pytest.raises(InputError, match=r"--fold"):
        open_fold_numbers(root, text)
