"""The data check: sound data pass, every kind of harm is told in its own line, and real patches bear out the rules."""

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from support.pannuke_folds import Arrays, fold_arrays, npz_compressed, real_fold, released
from support.real_tiles import SHARED
from unetsharp_engines.errors import InputError
from unetsharp_trainer.data.appearance import darkest_take_red
from unetsharp_trainer.data.check import (
    PUBLISHED_NUCLEI,
    PUBLISHED_PATCHES,
    DataReport,
    FoldReport,
    check_folds,
    open_sound_folds,
)

Array = npt.NDArray[Any]


def checked(root: Path) -> DataReport:
    folds, problems = open_sound_folds(root)
    report = check_folds(folds)
    report.problems[:0] = problems
    return report


def check_of(tmp_path: Path, *folds: Arrays) -> DataReport:
    for number, arrays in enumerate(folds, start=1):
        released(tmp_path, number, arrays)
    return checked(tmp_path)


def other_fold() -> Arrays:
    """Real patches that differ from `real_fold`'s: turned by half, one level brighter."""
    arrays = {name: array[:, ::-1, ::-1] if array.ndim > 2 else array for name, array in real_fold().items()}
    arrays["images"] = np.minimum(arrays["images"], 254) + np.uint8(1)
    return arrays


def test_sound_real_patches_have_no_problem(tmp_path: Path) -> None:
    done: list[int] = []
    released(tmp_path, 1, real_fold())
    released(tmp_path, 2, {**other_fold(), "images": other_fold()["images"].astype(np.float64)})
    folds, problems = open_sound_folds(tmp_path)
    report = check_folds(folds, done.append)
    assert (problems, report.problems, report.notes, sum(done)) == ([], [], [], 24)
    assert [(f.fold, f.patches, f.image_dtype, f.mask_dtype) for f in report.folds] == [
        (1, 12, "uint8", "uint8"),
        (2, 12, "float64", "uint8"),
    ]
    assert report.folds[0].tissues == {"Kidney": 6, "Skin": 6}
    assert not report.is_complete_pannuke


def test_nuclei_are_counted_by_class_and_patch(tmp_path: Path) -> None:
    arrays = fold_arrays(3, dtype="uint8")
    ids = [(np.asarray(arrays["masks"])[i, ..., c]) for i in range(3) for c in range(5)]
    expected = [sum(len(np.unique(m)) - 1 for m in ids[c::5]) for c in range(5)]
    report = check_of(tmp_path, arrays)
    assert list(report.folds[0].nuclei.values()) == expected
    assert list(report.folds[0].nuclei) == list(PUBLISHED_NUCLEI)
    assert "too few" not in str(report.problems)
    assert report.notes == ["fold 1: only 2 patches to judge colours and masks by; it takes 10"]


def set_level(value: float) -> Callable[[Arrays], None]:
    def harm(arrays: Arrays) -> None:
        arrays["images"] = arrays["images"].astype(np.float64)
        arrays["images"][3, 5, 5, 1] = value  # type: ignore[call-overload]

    return harm


def set_mask(value: float, channel: int = 0) -> Callable[[Arrays], None]:
    def harm(arrays: Arrays) -> None:
        masks: Array = arrays["masks"].astype(np.float64)
        row, column = np.argwhere(masks[4, ..., 5] > 0)[0]
        masks[4, row, column, channel] = value
        masks[4, row, column, 5] = channel == 5
        arrays["masks"] = masks

    return harm


def overlap(arrays: Arrays) -> None:
    masks: Array = arrays["masks"]
    masks[7, ..., 0] = masks[7, ..., 7 % 5]


def no_background(arrays: Arrays) -> None:
    arrays["masks"][..., 5] = 0  # type: ignore[index]


def blank(arrays: Arrays) -> None:
    arrays["images"][[2, 9]] = 0  # type: ignore[index]


def unit_levels(arrays: Arrays) -> None:
    arrays["images"] = arrays["images"] / np.float32(255)  # type: ignore[operator]


def bgr(arrays: Arrays) -> None:
    arrays["images"] = arrays["images"][..., ::-1].copy()


def one_tissue_bgr(arrays: Arrays) -> None:
    arrays["images"] = np.concatenate([arrays["images"], arrays["images"][..., ::-1]])
    arrays["masks"] = np.concatenate([arrays["masks"]] * 2)
    arrays["types"] = np.array(["Lung"] * 12 + ["Liver"] * 12)


def shuffled(arrays: Arrays) -> None:
    arrays["masks"] = np.roll(arrays["masks"], 5, axis=0)


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        (set_level(np.nan), "fold 1: levels that are NaN or infinite in 1 patch: 3"),
        (set_level(np.inf), "fold 1: levels that are NaN or infinite in 1 patch: 3"),
        (set_level(-1), "fold 1: levels outside 0 to 255 in 1 patch: 3"),
        (set_level(256), "fold 1: levels outside 0 to 255 in 1 patch: 3"),
        (blank, "fold 1: one flat colour in 2 patches: 2, 9"),
        (unit_levels, "fold 1: levels from 0 to 1 (multiply by 255) in 12 patches: 0, 1, 2, 3, 4, …"),
        (set_mask(np.nan), "fold 1: mask values that are NaN, infinite or negative in 1 patch: 4"),
        (set_mask(-2), "fold 1: mask values that are NaN, infinite or negative in 1 patch: 4"),
        (set_mask(1.5), "fold 1: instance ids that are no whole numbers in 1 patch: 4"),
        (overlap, "fold 1: nuclei of two classes in one pixel (the later class counts) in 1 patch: 7"),
        (
            no_background,
            "fold 1: a background channel that is not set exactly where no nucleus is (it is not read) "
            "in 12 patches: 0, 1, 2, 3, 4, …",
        ),
        (
            bgr,
            "fold 1: red and blue look swapped (BGR): in 12 of 12 patches the nuclei take more blue than red; "
            "save the images as RGB",
        ),
        (
            one_tissue_bgr,
            "fold 1: red and blue look swapped (BGR): in 12 of 12 patches of Liver the nuclei take more blue than red; "
            "save the images as RGB",
        ),
    ],
)
def test_harm_is_told_in_its_line(tmp_path: Path, harm: Callable[[Arrays], None], line: str) -> None:
    arrays = real_fold()
    harm(arrays)
    assert check_of(tmp_path, arrays).problems == [line]


def test_masks_of_other_images_are_told(tmp_path: Path) -> None:
    arrays = real_fold()
    shuffled(arrays)
    (problem,) = check_of(tmp_path, arrays).problems
    assert problem.startswith("fold 1: masks do not match the images: only ")
    assert "of 11 patches" in problem


def test_an_image_in_two_folds_is_a_problem_and_twice_in_one_is_a_note(tmp_path: Path) -> None:
    first, second = real_fold(), other_fold()
    second["images"][7] = first["images"][2]  # type: ignore[index]
    second["masks"][7] = first["masks"][2]  # type: ignore[index]
    for role in ("images", "masks"):
        second[role][11] = second[role][10]  # type: ignore[index]
    report = check_of(tmp_path, first, second)
    assert report.problems == ["folds 1 and 2 share 1 images, so none can test another: 1:2 = 2:7 (fold:patch)"]
    assert report.notes == ["fold 2: 1 images come more than once: 2:10 = 2:11 (fold:patch)"]


def test_a_fold_that_cannot_be_opened_does_not_hide_the_others(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        released(tmp_path, number, real_fold() if number == 1 else fold_arrays())
    (tmp_path / "Fold 2/masks/fold2/masks.npy").unlink()
    path = tmp_path / "Fold 3/images/fold3/images.npy"
    path.write_bytes(path.read_bytes()[:-5])
    report = checked(tmp_path)
    assert [fold.fold for fold in report.folds] == [1]
    missing, cut = report.problems
    assert "fold 2: no masks.npy" in missing
    assert "images.npy: cut short" in cut


def test_damage_inside_a_file_ends_its_fold_only(tmp_path: Path) -> None:
    npz_compressed(tmp_path, 1, real_fold())
    released(tmp_path, 2, other_fold())
    path = tmp_path / "pannuke_fold_1.npz"
    data = bytearray(path.read_bytes())
    data[200_000:210_000] = b"\xff" * 10_000
    path.write_bytes(data)
    report = checked(tmp_path)
    assert len(report.problems) == 1
    assert "pannuke_fold_1.npz [images]: cannot be read" in report.problems[0]
    assert report.folds[1].patches == 12


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no PanNuke fold"):
        open_sound_folds(tmp_path)


def test_the_published_counts_are_those_of_the_whole_data_set() -> None:
    assert sum(PUBLISHED_NUCLEI.values()) == 189_744
    assert sum(PUBLISHED_PATCHES.values()) == 7901
    folds = [
        FoldReport(fold=k, patches=n, image_dtype="", mask_dtype="", tissues={}, nuclei={}, patches_with_unknown=0)
        for k, n in PUBLISHED_PATCHES.items()
    ]
    assert DataReport(folds=folds).is_complete_pannuke
    assert not DataReport(folds=folds[:2]).is_complete_pannuke


def shared_fold(number: int) -> Arrays:
    path = SHARED / f"data/pannuke_mini/fold{number}.npz"
    if not path.exists():
        pytest.skip(f"no {path}; set UNETSHARP_SHARED to where the data is")
    packed = np.load(path)
    instances, classes = packed["inst"], packed["type"]
    masks = np.stack([np.where(classes == c + 1, instances, 0) for c in range(5)] + [instances == 0], axis=-1)
    return {"images": packed["images"], "masks": masks, "types": packed["types"]}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_rules_hold_on_hundreds_of_real_patches(tmp_path: Path, number: int) -> None:
    arrays = shared_fold(number)
    released(tmp_path / "sound", 1, arrays)
    report = checked(tmp_path / "sound")
    assert report.problems == []
    with (SHARED / "data/pannuke_mini/sources.csv").open() as file:
        counted: Counter[str] = Counter()
        for row in csv.DictReader(file):
            if int(row["fold"]) == number:
                counted.update({name: int(row[f"n_{name.lower()}"]) for name in PUBLISHED_NUCLEI})
    assert report.folds[0].nuclei == dict(counted)

    order = np.random.default_rng(number).permutation(len(arrays["images"]))
    for name, role, changed in [
        ("swapped", "images", arrays["images"][..., ::-1]),
        ("shuffled", "masks", arrays["masks"][order]),
        ("transposed", "masks", arrays["masks"].transpose(0, 2, 1, 3)),
    ]:
        harmed = {**arrays, role: changed}
        released(tmp_path / name, 1, {part: array[::3] for part, array in harmed.items()})
        (problem,) = checked(tmp_path / name).problems
        assert ("look swapped (BGR)" if name == "swapped" else "masks do not match the images") in problem


def test_colour_rule_holds_on_the_competitions_patches() -> None:
    path = SHARED / "data/dsb_nuclei/dsb.npz"
    if not path.exists():
        pytest.skip(f"no {path}; set UNETSHARP_SHARED to where the data is")
    images = np.load(path)["images"]
    assert np.mean([bool(darkest_take_red(image)) for image in images]) > 0.95
    assert np.mean([bool(darkest_take_red(image[..., ::-1])) for image in images]) < 0.05
