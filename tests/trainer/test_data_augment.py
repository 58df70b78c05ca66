"""Augmentation: image and target stay together, seeds decide everything, nothing asks the network for news."""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unetsharp_engines.contract import BACKGROUND
from unetsharp_engines.errors import InputError
from unetsharp_trainer.data.augment import Augmentation, paper_augmentation
from unetsharp_trainer.data.ink import SHARE, spill_ink
from unetsharp_trainer.data.pannuke import UNKNOWN
from unetsharp_trainer.data.wide_augment import wide_augmentation

pytest.importorskip("albumentations", reason="augmentation is part of the train extra")
Bytes = npt.NDArray[np.uint8]

SINGLE = {"HorizontalFlip", "VerticalFlip", "Transpose", "Affine", "RandomBrightnessContrast"}
"""Transforms that each toss a coin of their own."""


@pytest.fixture(scope="module")
def augment() -> Augmentation:
    return paper_augmentation(224)


def discs() -> tuple[Bytes, Bytes]:
    """Dark discs on a light ground, and the classes whose outlines they are."""
    rows, columns = np.mgrid[:256, :256]
    target = np.full((256, 256), 5, dtype=np.uint8)
    for number, (row, column) in enumerate(np.random.default_rng(4).integers(0, 256, (12, 2))):
        target[np.hypot(rows - row, columns - column) < 22] = number % 5
    levels = np.where(target < 5, 70, 200).astype(np.uint8)
    return np.repeat(levels[..., None], 3, axis=2), target


def test_target_moves_with_the_image(augment: Augmentation) -> None:
    image, target = discs()
    agreement = []
    for seed in range(60):
        augment.seed(seed)
        changed, moved = augment(image, target)
        levels, nuclei = changed.mean(axis=2), moved < 5
        middle = (np.median(levels[nuclei]) + np.median(levels[~nuclei])) / 2
        agreement.append(((levels < middle) == nuclei).mean())
    assert min(agreement) > 0.975  # blur and interpolation move an edge by a pixel at most
    assert np.mean(agreement) > 0.99


def test_ink_is_dark_large_and_background() -> None:
    """Under ink all is dark and background; beside it nothing changes. As often as it says, however the draw falls."""
    image, target = np.full((256, 256, 3), 200, np.uint8), np.zeros((256, 256), np.uint8)
    covered = []
    for seed in range(400):
        inked, moved = spill_ink(image, target, np.random.default_rng(seed))
        under = moved == 5
        assert np.array_equal(under, (inked != 200).any(axis=2))
        assert not moved[~under].any()
        if under.any():
            assert inked[under].max() < 150
            covered.append(under.mean())
    assert len(covered) / 400 == pytest.approx(SHARE, abs=0.06)  # three standard deviations
    assert 0.04 < min(covered) <= max(covered) < 0.61
    assert (image == 200).all()


def test_wide_augmentation_spills_ink_in_worker_processes_too() -> None:
    """Where all is one nucleus, background can only be ink's."""
    image, target = np.full((256, 256, 3), 200, np.uint8), np.zeros((256, 256), np.uint8)
    for augment in (wide := wide_augmentation(64), pickle.loads(pickle.dumps(wide))):  # noqa: S301
        inked = 0
        for seed in range(60):
            augment.seed(seed)
            inked += bool((augment(image, target)[1] == BACKGROUND.channel).any())
        assert 3 <= inked <= 24


def test_nuclei_keep_their_centres(augment: Augmentation) -> None:
    """Without geometry nothing moves: a blur kernel off its centre would shift the image under its target."""
    rows, columns = np.mgrid[:256, :256]
    disc = np.hypot(rows - 128, columns - 128) < 20
    image = np.repeat(np.where(disc, 60, 220).astype(np.uint8)[..., None], 3, axis=2)
    blurs = [t for t in transforms(augment) if type(t).__name__ in ("MotionBlur", "MedianBlur")]
    assert len(blurs) == 2
    for blur in blurs:
        for _ in range(20):
            darkness = 220.0 - blur(image=image, force_apply=True)["image"][..., 0]
            assert abs((rows * darkness).sum() / darkness.sum() - 128) < 0.1
            assert abs((columns * darkness).sum() / darkness.sum() - 128) < 0.1


@settings(max_examples=25, deadline=None)
@given(
    values=st.sets(st.sampled_from([0, 1, 2, 3, 4, 5, UNKNOWN]), min_size=1),
    seed=st.integers(0, 2**64),
    size=st.sampled_from([32, 224, 256]),
)
def test_targets_only_hold_values_they_held(values: set[int], seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    target = rng.choice(np.array(sorted(values), dtype=np.uint8), (256, 256))
    augment = paper_augmentation(size)
    augment.seed(seed)
    image, moved = augment(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8), target)
    assert (image.shape, moved.shape) == ((size, size, 3), (size, size))
    assert (image.dtype, moved.dtype) == (np.uint8, np.uint8)
    assert set(np.unique(moved)) <= values


def test_the_seed_alone_decides(augment: Augmentation) -> None:
    image, target = discs()
    augment.seed((7, 1, 3))
    first = augment(image, target)
    second = augment(image, target)
    np.random.seed(1)
    copy: Augmentation = pickle.loads(pickle.dumps(augment))  # noqa: S301
    for other in (copy, augment, paper_augmentation(224)):
        other.seed((7, 1, 3))
        for expected in (first, second):
            for ours, theirs in zip(other(image, target), expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_epochs_patches_and_runs_differ(augment: Augmentation) -> None:
    image, target = discs()
    seen = set()
    for seed in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1)]:
        augment.seed(seed)
        seen.add(augment(image, target)[0].tobytes())
    assert len(seen) == 5


def test_draws_of_different_transforms_are_independent(augment: Augmentation) -> None:
    """Seeded for each patch, whether one transform acts says nothing on whether another does."""
    image, target = discs()
    coins = [t for t in transforms(augment) if t.p == 0.5 and type(t).__name__ in SINGLE]
    assert len(coins) >= 5
    acted = []
    for seed in range(200):
        augment.seed((seed, 5))
        augment(image, target)
        acted.append([bool(t.params) for t in coins])
    correlation = np.corrcoef(np.array(acted, dtype=float).T)
    assert np.abs(correlation[~np.eye(len(coins), dtype=bool)]).max() < 0.3


PAPER = {
    "crops": {"RandomCrop"},
    "rotations": {"RandomRotate90", "Affine"},
    "flips": {"HorizontalFlip", "VerticalFlip"},
    "transposes": {"Transpose"},
    "noise": {"GaussNoise"},
    "motion blur": {"MotionBlur"},
    "median blur": {"MedianBlur"},
    "shift, scale, affine": {"Affine"},
    "distortions": {"ElasticTransform", "GridDistortion", "OpticalDistortion"},
    "sharpness": {"Sharpen"},
    "contrast, brightness": {"RandomBrightnessContrast"},
}


def transforms(augment: Augmentation) -> Iterator[Any]:
    for transform in augment._compose.transforms:
        yield from getattr(transform, "transforms", [transform])


@pytest.mark.parametrize("item", PAPER)
def test_every_item_of_the_papers_list_acts(augment: Augmentation, item: str) -> None:
    found = {type(t).__name__: t for t in transforms(augment) if type(t).__name__ in PAPER[item]}
    assert set(found) == PAPER[item]
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    for transform in found.values():
        results = [transform(image=image, force_apply=True)["image"] for _ in range(4)]
        assert any(r.shape != image.shape or not np.array_equal(r, image) for r in results)


@pytest.mark.parametrize("size", [0, -32, 257, 512])
def test_sizes_that_no_patch_has(size: int) -> None:
    with pytest.raises(InputError, match=f"{size} px .* 32 to 256"):
        paper_augmentation(size)


OFFLINE = """
import socket
def refuse(*args, **kwargs): raise SystemExit("the network was asked")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import numpy as np
from unetsharp_trainer.data.wide_augment import wide_augmentation
from unetsharp_trainer.data.augment import paper_augmentation
for make in (wide_augmentation, paper_augmentation):
    print(make(224)(np.zeros((256, 256, 3), np.uint8), np.zeros((256, 256), np.uint8))[0].shape)
"""


def test_nothing_asks_the_network() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run([sys.executable, "-c", OFFLINE], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(224, 224, 3)\n" * 2, "")
