"""The demo's labelled patches, as a PanNuke folder.

Six of Data Science Bowl 2018 (BBBC038, CC0) that the shipped weights were not trained on; origin in
``benchmarks/edge/make_demo_patches.py``. Nobody stated their nuclei's classes, so all are of unknown class.
"""

from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unetsharp_engines.contract import BACKGROUND, CLASSES, TILE
from unetsharp_engines.files import replacing

__all__ = ["FOLD", "write_labelled"]

FOLD = 3
"""Number given to the one fold, as that of PanNuke's on which the paper tests."""


def write_labelled(root: Path) -> None:
    """Write the patches as fold `FOLD` of a PanNuke folder ``root``."""
    images = _patches("labelled.jpg", "RGB")
    nuclei = _patches("labelled_nuclei.png", "L") > 0
    masks = np.zeros((*nuclei.shape, len(CLASSES)), np.uint8)
    masks[..., BACKGROUND.channel] = ~nuclei
    fold = root / f"Fold {FOLD}"
    pictures = fold / "images" / f"fold{FOLD}"
    _save(pictures / "images.npy", images)
    _save(pictures / "types.npy", np.array(["Unknown"] * len(images)))
    _save(fold / "masks" / f"fold{FOLD}" / "masks.npy", masks)
    _save(fold / "ignore.npy", nuclei)


def _patches(asset: str, mode: str) -> npt.NDArray[np.uint8]:
    """The patches of a sheet of the package's assets, [N, 256, 256] or [N, 256, 256, 3]."""
    from PIL import Image

    with (files("unetsharp") / "assets" / asset).open("rb") as file, Image.open(file) as sheet:
        pixels = np.asarray(sheet.convert(mode))
    rows, columns = pixels.shape[0] // TILE, pixels.shape[1] // TILE
    tiles = pixels.reshape(rows, TILE, columns, TILE, *pixels.shape[2:]).swapaxes(1, 2)
    return np.asarray(tiles.reshape(rows * columns, TILE, TILE, *pixels.shape[2:]))


def _save(path: Path, array: npt.NDArray[np.generic]) -> None:
    with replacing(path) as temporary:
        np.save(temporary, array)
