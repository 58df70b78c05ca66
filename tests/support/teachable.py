"""Folds that a tiny network can learn from in seconds: dark squares are nuclei, their hue is their class."""

from pathlib import Path
from typing import Any

import numpy as np

from support.pannuke_folds import Arrays, fold_arrays, released, save

HUES = np.array([[150, 40, 60], [40, 60, 150], [60, 120, 60], [90, 90, 40], [120, 40, 140], [225, 190, 215]])
ENCODER = "test_efficientnet"
"""timm's own test network: 120,000 parameters with a decoder of width 4."""

TINY = ["--encoder", ENCODER, "--width", "4", "--encoder-weights", "none", "--stain", "none", "--size", "64"]
"""Options of a training run of a second an epoch."""


def teachable(n: int, seed: int, classes: tuple[int, ...] = (0, 1, 2, 4)) -> Arrays:
    """A fold of ``n`` patches with squares of ``classes``."""
    arrays = fold_arrays(n, seed=seed, dtype="uint8", mask_dtype="uint16")
    rng = np.random.default_rng(seed)
    for channel in set(range(5)) - set(classes):
        arrays["masks"][..., channel] = 0
    arrays["masks"][..., 5] = ~arrays["masks"][..., :5].any(-1)
    levels = HUES[np.argmax(arrays["masks"] > 0, axis=-1)] + rng.normal(0, 8, (n, 256, 256, 3))
    arrays["images"] = np.clip(levels, 0, 255).astype(np.uint8)
    return arrays


def write_teachable(root: Path, patches: tuple[int, ...] = (8, 3, 3), **options: Any) -> Path:
    """Write folds 1, 2, … in the released layout; with ``unknown=True`` fold 1 marks the upper half's nuclei so."""
    unknown = options.pop("unknown", False)
    for number, n in enumerate(patches, start=1):
        arrays = teachable(n, seed=number, **options)
        if unknown and number == 1:
            ignore = arrays["masks"][..., :5].any(-1)
            ignore[:, 128:] = False
            arrays["masks"][ignore] = 0
            save(root / f"Fold {number}/ignore.npy", ignore)
        released(root, number, arrays)
    return root
