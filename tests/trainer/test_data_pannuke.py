"""PanNuke as people have it: every layout and dtype gives the same targets and instances; mistakes get one line."""

import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.pannuke_folds import (
    Arrays,
    fold_arrays,
    lower_flat,
    merged_parts,
    nested_in_download,
    npz_compressed,
    npz_each,
    npz_fold,
    released,
    save,
    upper_half_nested,
)
from unetsharp_engines.errors import InputError
from unetsharp_trainer.data.arrays import StreamedArray
from unetsharp_trainer.data.pannuke import UNKNOWN, Fold, FoldPlan, open_folds, parse_folds

Layout = Callable[[Path, int, Arrays], None]
LAYOUTS: list[Layout] = [
    released,
    nested_in_download,
    lower_flat,
    upper_half_nested,
    merged_parts,
    npz_each,
    npz_fold,
    npz_compressed,
]


@contextmanager
def fold_on_disk(arrays: Arrays, layout: Layout = released, number: int = 1) -> Iterator[Fold]:
    with tempfile.TemporaryDirectory() as name:
        layout(Path(name), number, arrays)
        yield open_folds(Path(name))[number]


def expected_target(masks: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
    """The closed form where classes do not overlap: the class that is set, else 5."""
    nuclei = np.asarray(masks[..., :5]) > 0
    return np.where(nuclei.any(-1), nuclei.argmax(-1), 5)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@settings(max_examples=3, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(["uint8", "uint16", "int64", "float32", "float64"]),
    mask_dtype=st.sampled_from(["uint8", "uint16", "int32", "float32", "float64"]),
    number=st.integers(1, 12),
)
def test_every_layout_and_dtype_gives_the_same_patches(
    layout: Layout, seed: int, dtype: str, mask_dtype: str, number: int
) -> None:
    arrays = fold_arrays(seed=seed, dtype=dtype, mask_dtype=mask_dtype)
    with fold_on_disk(arrays, layout, number) as fold:
        assert (len(fold), fold.number, fold.tissues) == (2, number, ["Breast", "Colon"])
        for index in (1, 0, 1):
            masks = np.asarray(arrays["masks"][index])
            image, target, instances = fold.image(index), fold.target(index), fold.instances(index)
            assert (image.dtype, target.dtype, instances.dtype) == (np.uint8, np.uint8, np.int32)
            np.testing.assert_array_equal(image, arrays["images"][index])
            np.testing.assert_array_equal(target, expected_target(masks))
            classes = fold.instance_classes(index)
            assert len(classes) == instances.max() == sum(len(np.unique(masks[..., c])) - 1 for c in range(5))
            np.testing.assert_array_equal(np.append(classes, 5)[instances - 1], target)
            for channel in range(5):  # the same partition into nuclei, class by class
                here = target == channel
                pairs = np.unique(np.stack([masks[..., channel][here], instances[here]]), axis=1)
                assert (
                    pairs.shape[1] == len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == (classes == channel).sum()
                )


def test_same_id_in_two_classes_is_two_nuclei_and_the_later_class_wins_overlaps() -> None:
    arrays = fold_arrays(1)
    masks = arrays["masks"] = np.zeros((1, 256, 256, 6))
    masks[0, 10:20, 10:20, 0] = 4
    masks[0, 15:25, 10:20, 3] = 4
    with fold_on_disk(arrays) as fold:
        instances = fold.instances(0)
        assert fold.instance_classes(0).tolist() == [0, 3]
        assert (np.bincount(instances.ravel())[1:] == [50, 100]).all()
        assert (fold.target(0)[15:25, 10:20] == 3).all()


def test_patch_without_nuclei_is_background() -> None:
    arrays = fold_arrays(1)
    arrays["masks"] = np.zeros((1, 256, 256, 6))
    with fold_on_disk(arrays) as fold:
        assert (fold.target(0) == 5).all()
        assert not fold.instances(0).any()
        assert fold.instance_classes(0).shape == (0,)


@pytest.mark.parametrize("as_npz", [False, True])
def test_nuclei_of_unknown_class_are_marked(tmp_path: Path, as_npz: bool) -> None:
    released(tmp_path, 1, fold_arrays())
    ignore = np.zeros((2, 256, 256), dtype=bool)
    ignore[1, 250:, :9] = True
    if as_npz:
        np.savez_compressed(tmp_path / "Fold 1/ignore.npz", ignore=ignore)
    else:
        np.save(tmp_path / "Fold 1/ignore.npy", ignore)
    fold = open_folds(tmp_path)[1]
    np.testing.assert_array_equal(fold.target(1) == UNKNOWN, ignore[1])
    assert not (fold.target(0) == UNKNOWN).any()


def test_images_and_masks_are_mapped_not_read(tmp_path: Path) -> None:
    for layout in (released, npz_fold):
        layout(tmp_path / layout.__name__, 2, fold_arrays())
        fold = open_folds(tmp_path / layout.__name__)[2]
        assert isinstance(fold.images, np.memmap)
        assert isinstance(fold.masks, np.memmap)
        assert not fold.notes


def test_compressed_npz_is_streamed_and_says_how_to_unpack(tmp_path: Path) -> None:
    arrays = fold_arrays(3)
    npz_compressed(tmp_path, 3, arrays)
    fold = open_folds(tmp_path)[3]
    assert isinstance(fold.images, StreamedArray)
    (note,) = fold.notes
    assert note.endswith(f"unzip '{tmp_path}/pannuke_fold_3.npz' -d '{tmp_path}/pannuke_fold_3'")
    for index in (2, 0, 1):  # backwards too
        np.testing.assert_array_equal(fold.image(index), arrays["images"][index])
    with pytest.raises(IndexError):
        fold.image(3)


def test_a_forked_reader_does_not_move_its_parents_position(tmp_path: Path) -> None:
    arrays = fold_arrays(3)
    npz_compressed(tmp_path, 1, arrays)
    fold = open_folds(tmp_path)[1]
    fold.image(0)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(fold.image(2), arrays["images"][2]) else 1)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(fold.image(1), arrays["images"][1])


@pytest.mark.parametrize("layout", [released, npz_compressed])
def test_pickled_fold_reopens_its_files(tmp_path: Path, layout: Layout) -> None:
    layout(tmp_path, 1, fold_arrays())
    fold = open_folds(tmp_path)[1]
    data = pickle.dumps(fold)
    assert len(data) < 4096
    np.testing.assert_array_equal(pickle.loads(data).target(1), fold.target(1))  # noqa: S301


def test_root_may_be_one_fold(tmp_path: Path) -> None:
    released(tmp_path, 2, fold_arrays())
    assert list(open_folds(tmp_path / "Fold 2")) == [2]


@pytest.mark.skipif(os.name == "nt", reason="Windows lets few users make links")
def test_folds_may_be_linked_from_another_disk(tmp_path: Path) -> None:
    released(tmp_path / "disk", 2, fold_arrays())
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "Fold 2").symlink_to(tmp_path / "disk" / "Fold 2", target_is_directory=True)
    assert list(open_folds(tmp_path / "data")) == [2]


def test_hidden_folders_are_not_searched(tmp_path: Path) -> None:
    released(tmp_path, 2, fold_arrays())
    lower_flat(tmp_path / ".unetsharp-cache", 2, fold_arrays())
    assert list(open_folds(tmp_path)) == [2]


def drop_masks(root: Path) -> None:
    (root / "Fold 1/masks/fold1/masks.npy").unlink()


def cut_masks(root: Path) -> None:
    path = root / "Fold 1/masks/fold1/masks.npy"
    os.truncate(path, path.stat().st_size - 1000)


def empty_images(root: Path) -> None:
    os.truncate(root / "Fold 1/images/fold1/images.npy", 0)


def lose_a_type(root: Path) -> None:
    save(root / "Fold 1/images/fold1/types.npy", np.array(["Breast"]))


def pickle_types(root: Path) -> None:
    save(root / "Fold 1/images/fold1/types.npy", np.array(["Breast", None], dtype=object))


def channels_first(root: Path) -> None:
    save(root / "Fold 1/images/fold1/images.npy", np.zeros((2, 3, 256, 256)))


def text_masks(root: Path) -> None:
    save(root / "Fold 1/masks/fold1/masks.npy", np.zeros((2, 256, 256, 6), dtype="U1"))


def numbers_as_tissues(root: Path) -> None:
    save(root / "Fold 1/images/fold1/types.npy", np.arange(2))


def twice(root: Path) -> None:
    lower_flat(root, 1, fold_arrays())


def broken_npz(root: Path) -> None:
    (root / "fold9.npz").write_bytes(b"PK no zip")


@pytest.mark.parametrize(
    ("harm", "wrong", "do"),
    [
        (drop_masks, "no masks.npy; saw ", "Fold 1/masks/fold1/masks.npy"),
        (cut_masks, "cut short, 6,290,584 of 6,291,584 bytes", "download"),
        (empty_images, "images.npy: cannot be read", "download"),
        (lose_a_type, "2 images, 2 masks, 1 types", "one row a patch"),
        (pickle_types, "pickled Python objects", "plain dtype"),
        (channels_first, "float64 [2, 3, 256, 256]", "[N, 256, 256, 3]"),
        (text_masks, "<U1", "numbers"),
        (numbers_as_tissues, "types.npy: is int64", "text"),
        (twice, "are both images of one fold", "keep one"),
        (broken_npz, "fold9.npz: cannot be read", "download"),
    ],
)
def test_mistakes_get_one_line(tmp_path: Path, harm: Callable[[Path], None], wrong: str, do: str) -> None:
    released(tmp_path, 1, fold_arrays())
    harm(tmp_path)
    with pytest.raises(InputError) as caught:
        open_folds(tmp_path)
    message = str(caught.value)
    assert wrong in message
    assert do in message
    assert "\n" not in message


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="an empty folder"):
        open_folds(tmp_path)
    (tmp_path / "slides").mkdir()
    with pytest.raises(InputError, match=r"looked for Fold 1/.*, saw slides"):
        open_folds(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        open_folds(tmp_path / "absent")


def test_damaged_compressed_member_is_told(tmp_path: Path) -> None:
    arrays = fold_arrays(2)
    npz_compressed(tmp_path, 1, arrays)
    path = tmp_path / "pannuke_fold_1.npz"
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("images.npy").header_offset
    data = bytearray(path.read_bytes())
    data[offset + 5000 : offset + 9000] = b"\xff" * 4000  # no valid deflate blocks
    path.write_bytes(data)
    fold = open_folds(tmp_path)[1]
    with pytest.raises(InputError, match="cannot be read"):
        for index in range(2):
            fold.image(index)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 255.6, 4095.0])
def test_levels_outside_a_byte_are_refused(value: float) -> None:
    arrays = fold_arrays()
    arrays["images"][1, 3, 4, 0] = value  # type: ignore[call-overload]
    with fold_on_disk(arrays) as fold:
        fold.image(0)
        with pytest.raises(InputError, match="patch 1 has levels"):
            fold.image(1)


def test_images_scaled_to_one_are_refused_and_black_ones_are_not() -> None:
    arrays = fold_arrays(dtype="float32")
    arrays["images"] = arrays["images"] / np.float32(255)  # type: ignore[operator]
    arrays["images"][0] = 0  # type: ignore[index]
    with fold_on_disk(arrays) as fold:
        assert not fold.image(0).any()
        with pytest.raises(InputError, match="patch 1 has levels 0 to 1, not 0 to 255"):
            fold.image(1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 0.5, 3e9])
def test_values_that_are_no_ids_are_refused(value: float) -> None:
    arrays = fold_arrays()
    arrays["masks"][1, 3, 4, 0] = value  # type: ignore[call-overload]
    with fold_on_disk(arrays) as fold:
        fold.target(0)
        with pytest.raises(InputError, match="patch 1 has ids"):
            fold.target(1)
        with pytest.raises(InputError, match="patch 1 has ids"):
            fold.instances(1)


@pytest.mark.parametrize(
    ("text", "train", "valid", "test"),
    [
        ("1,2,3", (1,), (2,), (3,)),
        ("1+2,-,3", (1, 2), (), (3,)),
        ("3, -, -", (3,), (), ()),
        ("10,1+2,-", (10,), (1, 2), ()),
    ],
)
def test_fold_plans(text: str, train: tuple[int, ...], valid: tuple[int, ...], test: tuple[int, ...]) -> None:
    assert parse_folds(text) == FoldPlan(train=train, valid=valid, test=test)


@pytest.mark.parametrize("text", ["", "1", "1,2", "1,2,3,4", "a,b,c", "1-2,-,3", "1+,2,3", "1,1,3", "1+2,2,3", "-,1,2"])
def test_bad_fold_plans_show_an_example(text: str) -> None:
    with pytest.raises(InputError, match=r"'1(\+2)?,-,[3-]'") as caught:
        parse_folds(text)
    assert f"'{text}'" in str(caught.value)
