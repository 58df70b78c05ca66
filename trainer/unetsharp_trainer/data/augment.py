"""The paper's augmentation, image and target together, with albumentations."""

import os
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetsharp_engines.contract import TILE
from unetsharp_engines.errors import InputError, MissingCapabilityError

if TYPE_CHECKING:
    import albumentations

__all__ = ["Augmentation", "paper_augmentation"]

Bytes = npt.NDArray[np.uint8]
Before = Callable[[Bytes, Bytes, np.random.Generator], tuple[Bytes, Bytes]]
"""Changes an image and its class map by what a generator gives."""


class Augmentation:
    """A random change of a patch, driven by its own generator: neither global seeds nor other threads touch it.

    A new one, and one that was pickled to a worker process, is as if just seeded with 0.
    """

    def __init__(
        self, size: int, build: "Callable[[int], albumentations.Compose]", before: Before | None = None
    ) -> None:
        """``build`` makes the pipeline for windows of ``size`` px; it may import albumentations and cv2.

        ``before`` changes image and class map first, by the generator it is given.

        Raises InputError unless ``size`` is 1 to 256, MissingCapabilityError without albumentations.
        """
        if not 1 <= size <= TILE:
            raise InputError(f"training size {size} px cannot be cut from PanNuke's patches; give 32 to {TILE}, as 224")
        _load_albumentations()
        self.size = size
        self._build = build
        self._before = before
        self._generator = np.random.default_rng(0)
        self._random = random.Random(0)
        self._compose = self._build(size)
        # albumentations' own set_random_seed starts every transform from the same seed, so that their draws go hand
        # in hand (whatever is flipped is also turned). Sharing one pair of generators keeps them independent.
        self._compose.set_random_state(self._generator, self._random)

    def __reduce__(self) -> tuple[Any, ...]:
        return Augmentation, (self.size, self._build, self._before)

    def seed(self, seed: int | Sequence[int]) -> None:
        """Restart the randomness from ``seed``: a non-negative integer, or some, e.g. (run, epoch, patch)."""
        bits = np.random.PCG64(np.random.SeedSequence(seed))
        self._random.seed(int(bits.random_raw()))
        self._generator.bit_generator.state = bits.state

    def __call__(
        self, image: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Augment RGB uint8 [256,256,3] and its class map uint8 [256,256] to [size,size,3] and [size,size].

        The class map moves with the image and only ever holds values it held before, or background.
        """
        if self._before is not None:
            image, target = self._before(image, target, self._generator)
        changed = self._compose(image=image, mask=target)
        return changed["image"], changed["mask"]


def paper_augmentation(size: int) -> Augmentation:
    """The paper's list: crops to ``size`` px, rotations, flips, transposes, noise, motion and median blur, shift and
    scale, distortions and affine, sharpness, contrast, brightness. The paper gives no strengths; these are ours.

    Raises InputError unless ``size`` is 1 to 256, MissingCapabilityError without albumentations.
    """
    return Augmentation(size, _compose)


def _load_albumentations() -> None:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else it asks the package index for news when imported
    try:
        import albumentations  # noqa: F401
        import cv2
    except ModuleNotFoundError as error:
        raise MissingCapabilityError(
            f"augmentation needs {error.name}, which is not installed here: pip install 'unetsharp[train]'"
        ) from error
    cv2.setNumThreads(0)  # the loader's processes are the parallelism; OpenCV's own threads do not survive a fork


def _compose(size: int) -> "albumentations.Compose":
    import albumentations as A
    import cv2

    # What lies beyond the edge is mirrored in image and target alike, so a mirrored nucleus keeps its true class and
    # every pixel of the window teaches.
    edge: dict[str, Any] = {"border_mode": cv2.BORDER_REFLECT_101, "mask_interpolation": cv2.INTER_NEAREST}
    distortions = [
        A.ElasticTransform(alpha=60, sigma=8, approximate=True, **edge),
        A.GridDistortion(distort_limit=0.2, **edge),
        A.OpticalDistortion(distort_limit=0.3, **edge),
    ]
    # Unshifted blur kernels: others move the image by pixels under a target that stays.
    blurs = [
        A.MotionBlur(blur_limit=(3, 7), allow_shifted=False, direction_range=(0.0, 0.0)),
        A.MedianBlur(blur_limit=(3, 5)),
    ]
    return A.Compose(
        [
            A.RandomRotate90(),
            A.HorizontalFlip(),
            A.VerticalFlip(),
            A.Transpose(),
            A.Affine(
                scale=(0.8, 1.25), translate_percent=(-0.0625, 0.0625), rotate=(-45, 45), shear=(-8, 8), p=0.5, **edge
            ),
            A.OneOf(distortions, p=0.25),
            A.RandomCrop(size, size),  # after what draws on the surroundings, so that less of them is mirrored
            A.OneOf(blurs, p=0.2),
            A.Sharpen(alpha=(0.1, 0.4), lightness=(1.0, 1.0), p=0.2),
            A.RandomBrightnessContrast(brightness_limit=0.1, contrast_limit=0.2, p=0.5),
            A.GaussNoise(std_range=(0.01, 0.05), p=0.25),
        ]
    )
