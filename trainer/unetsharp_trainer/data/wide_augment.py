"""Augmentation that reaches other scanners, stains and resolutions: for training from random weights on few slides."""

from typing import TYPE_CHECKING, Any

from unetsharp_trainer.data.augment import Augmentation
from unetsharp_trainer.data.ink import spill_ink

if TYPE_CHECKING:
    import albumentations

__all__ = ["wide_augmentation"]


def wide_augmentation(size: int) -> Augmentation:
    """Any orientation, scale 0.6 to 1.6, colours and stain strength well apart, blur as of a slide scanned at 20× and
    resampled to 40×, ink on one window in five. Windows are ``size`` px, cut after the geometry; beyond the patch's
    edge it is mirrored.

    Raises MissingCapabilityError without albumentations.
    """
    return Augmentation(size, _compose, spill_ink)


def _compose(size: int) -> "albumentations.Compose":
    import albumentations as A
    import cv2

    edge: dict[str, Any] = {"border_mode": cv2.BORDER_REFLECT_101, "mask_interpolation": cv2.INTER_NEAREST}
    blurs = [
        A.Downscale(
            scale_range=(0.4, 0.7), interpolation_pair={"upscale": cv2.INTER_LINEAR, "downscale": cv2.INTER_AREA}
        ),
        A.GaussianBlur(sigma_limit=(0.5, 2.0)),
        A.MotionBlur(blur_limit=(3, 7), allow_shifted=False, direction_range=(0.0, 0.0)),
    ]
    return A.Compose(
        [
            A.D4(p=1.0),
            A.Affine(scale=(0.6, 1.6), translate_percent=(-0.1, 0.1), rotate=(-45, 45), shear=(-6, 6), p=0.8, **edge),
            A.ElasticTransform(alpha=60, sigma=8, approximate=True, p=0.15, **edge),
            A.RandomCrop(size, size),
            A.HEStain(
                method="random_preset", intensity_scale_range=(0.75, 1.25), intensity_shift_range=(-0.15, 0.15), p=0.3
            ),
            A.ColorJitter(
                brightness=(0.75, 1.25), contrast=(0.7, 1.3), saturation=(0.6, 1.4), hue=(-0.04, 0.04), p=0.7
            ),
            A.OneOf(blurs, p=0.35),
            A.Sharpen(alpha=(0.1, 0.4), lightness=(1.0, 1.0), p=0.1),
            A.GaussNoise(std_range=(0.01, 0.05), p=0.2),
        ]
    )
