"""Folds of generated patches, written in the layouts in which people have PanNuke."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Arrays = dict[str, npt.NDArray[np.generic]]


def fold_arrays(n: int = 2, *, seed: int = 0, dtype: str = "float64", mask_dtype: str = "float64") -> Arrays:
    """A fold of ``n`` patches: random levels, and square nuclei of random class that never touch."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, 256, 256, 6), dtype=mask_dtype)
    for patch in range(n):
        for nucleus, (row, column) in enumerate(np.ndindex(4, 4)):
            channel = rng.integers(-1, 5)
            if channel >= 0:
                corner = np.array([row, column]) * 64 + rng.integers(1, 30, 2)
                side = rng.integers(3, 30)
                masks[patch, corner[0] : corner[0] + side, corner[1] : corner[1] + side, channel] = 3 + 7 * nucleus
    masks[..., 5] = ~masks[..., :5].any(-1)
    return {
        "images": rng.integers(0, 256, (n, 256, 256, 3)).astype(dtype),
        "masks": masks,
        "types": np.array([("Breast", "Colon", "Bile-duct")[i % 3] for i in range(n)]),
    }


def released(root: Path, number: int, arrays: Arrays) -> None:
    for role, array in arrays.items():
        part = "masks" if role == "masks" else "images"
        save(root / f"Fold {number}/{part}/fold{number}/{role}.npy", array)


def nested_in_download(root: Path, number: int, arrays: Arrays) -> None:
    released(root / f"fold_{number}", number, arrays)


def lower_flat(root: Path, number: int, arrays: Arrays) -> None:
    for role, array in arrays.items():
        save(root / f"fold{number}/{role}.npy", array)


def upper_half_nested(root: Path, number: int, arrays: Arrays) -> None:
    for role, array in arrays.items():
        save(root / f"Fold{number}/{'masks' if role == 'masks' else 'images'}/{role}.npy", array)


def merged_parts(root: Path, number: int, arrays: Arrays) -> None:
    for role, array in arrays.items():
        save(root / f"{'masks' if role == 'masks' else 'images'}/fold{number}/{role}.npy", array)


def npz_each(root: Path, number: int, arrays: Arrays) -> None:
    for role, array in arrays.items():
        path = root / f"Fold_{number}/{role}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, array)


def npz_fold(root: Path, number: int, arrays: Arrays) -> None:
    root.mkdir(parents=True, exist_ok=True)
    np.savez(root / f"fold{number}.npz", **arrays)  # type: ignore[arg-type]


def npz_compressed(root: Path, number: int, arrays: Arrays) -> None:
    root.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(root / f"pannuke_fold_{number}.npz", **arrays)  # type: ignore[arg-type]


def save(path: Path, array: npt.NDArray[np.generic]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def real_fold() -> Arrays:
    """A fold of twelve real H&E crops of 96² with their nuclei (``data/dsb_nuclei*.png``), mirrored to 256²."""
    images, nuclei = (_crops(Path(__file__).parents[1] / "data" / f"dsb_nuclei{part}.png") for part in ("", "_mask"))
    masks = np.zeros((*nuclei.shape, 6), dtype=np.uint8)
    for number, area in enumerate(nuclei > 0):
        masks[number, ..., number % 5] = area
        masks[number, ..., 5] = ~area
    return {"images": images, "masks": masks, "types": np.array(["Skin", "Kidney"] * 6)}


def _crops(sheet: Path) -> npt.NDArray[np.uint8]:
    pixels = np.asarray(Image.open(sheet)).astype(np.uint8)
    rows = pixels.reshape(3, 96, 4, 96, -1).transpose(0, 2, 1, 3, 4).reshape(12, 96, 96, -1)
    return np.pad(rows, ((0, 0), (80, 80), (80, 80), (0, 0)), mode="symmetric").squeeze()
