"""Write the openly licensed data that the shipped edge weights are trained and judged on, in PanNuke's layout.

    python benchmarks/edge/make_open_data.py SHARED DEST

SHARED holds ``dsb_nuclei/`` (BBBC038 / DSB 2018, CC0: nuclei of unknown class) and ``pannuke_mini/``, of which only
NuCLS (CC0) and histolytics' HGSC (BSD-3-Clause) are taken, never CoNSeP. DEST gets fold 1 to train on, fold 2 to choose
the epoch by, fold 3 held out, each ``ignore.npy`` marking the nuclei of unknown class, and ``split.csv`` naming every
patch's source. No source image is in two folds; of HGSC's two, the nest trains and the stromal one is held out.

The patches stay as they were scanned: most of DSB's are stained with one purple dye, which Macenko's two-stain model
turns into bright specks on dark ground. To teach both looks, the training fold holds every H&E patch of NuCLS and HGSC
a second time, Macenko-normalized. So the weights are to be trained with ``--stain none``.
"""

import csv
import hashlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from unetsharp_engines.stain import IDENTITY, normalize_tiles

FOLDS = (1, 2, 3)
DSB_SPLIT = (70, 10, 26)
NUCLS_SPLIT = (7, 1, 2)
TISSUE = {"DSB": "Unknown", "NuCLS": "Breast", "HGSC": "Ovarian"}


@dataclass(frozen=True)
class Patch:
    """One patch and where it came from."""

    source: str
    source_image: str
    fold: int
    image: np.ndarray
    ids: np.ndarray
    """int32 [256, 256, 5]: instance ids by class."""
    unknown: np.ndarray
    """bool [256, 256]: nuclei of unknown class."""


def main(shared: Path, destination: Path) -> None:
    """Read everything, split it, write three folds."""
    scanned = labelled(shared / "pannuke_mini")
    patches = [*dsb(shared / "dsb_nuclei"), *scanned, *(normalized(patch) for patch in scanned if patch.fold == 1)]
    with (destination / "split.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("fold", "index", "source", "source_image"))
        for fold in FOLDS:
            members = [patch for patch in patches if patch.fold == fold]
            write_fold(destination / f"Fold {fold}", fold, members)
            writer.writerows((fold, index, p.source, p.source_image) for index, p in enumerate(members))
            print(f"fold {fold}: " + ", ".join(f"{sum(p.source == s for p in members)} {s}" for s in TISSUE))


def dsb(folder: Path) -> list[Patch]:
    """DSB's patches, each a source image of its own; nobody stated a class, so every nucleus is unknown."""
    with (folder / "sources.csv").open(newline="") as file:
        names = [row["source_image"] for row in csv.DictReader(file)]
    arrays = np.load(folder / "dsb.npz")
    folds = split(names, DSB_SPLIT)
    no_ids = np.zeros((256, 256, 5), np.int32)
    return [
        Patch("DSB", name, folds[name], image, no_ids, instances > 0)
        for name, image, instances in zip(names, arrays["images"], arrays["instances"], strict=True)
    ]


def labelled(folder: Path) -> list[Patch]:
    """NuCLS and HGSC, with their classes."""
    with (folder / "sources.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] in ("NuCLS", "histolytics-HGSC")]
    nucls = split([row["source_tile"] for row in rows if row["source"] == "NuCLS"], NUCLS_SPLIT)
    folds = {**nucls, "hgsc_nest": 1, "hgsc_stromal": 3}
    arrays = {fold: np.load(folder / f"fold{fold}.npz") for fold in FOLDS}
    arrays = {
        fold: {name: stored[name] for name in ("images", "inst", "type", "ignore")} for fold, stored in arrays.items()
    }
    return [labelled_patch(row, folds[row["source_tile"]], arrays[int(row["fold"])]) for row in rows]


def labelled_patch(row: dict[str, str], fold: int, arrays: dict[str, np.ndarray]) -> Patch:
    """The patch of one row of ``sources.csv``."""
    index = int(row["index"])
    kinds, instances = arrays["type"][index], arrays["inst"][index].astype(np.int32)
    ids = np.stack([np.where(kinds == channel + 1, instances, 0) for channel in range(5)], axis=-1)
    unknown = np.unpackbits(arrays["ignore"][index], axis=-1).astype(bool)
    source = "NuCLS" if row["source"] == "NuCLS" else "HGSC"
    return Patch(source, row["source_tile"], fold, arrays["images"][index], ids, unknown)


def normalized(patch: Patch) -> Patch:
    """The same patch after Macenko normalization by its own stains."""
    image = normalize_tiles(patch.image[None], fallback=IDENTITY)[0]
    return replace(patch, source_image=f"{patch.source_image} (normalized)", image=image)


def split(names: list[str], sizes: tuple[int, int, int]) -> dict[str, int]:
    """Fold of every source image: in the order of their names' hashes, ``sizes`` to folds 1, 2 and 3."""
    ordered = sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    if len(ordered) != sum(sizes):
        raise SystemExit(
            f"{len(ordered)} source images found, {sum(sizes)} expected: other data than this was written for"
        )
    return dict(zip(ordered, np.repeat(FOLDS, sizes).tolist(), strict=True))


def write_fold(folder: Path, fold: int, patches: list[Patch]) -> None:
    """One fold in the layout in which PanNuke is released, and ``ignore.npy`` beside it."""
    images, masks = folder / "images" / f"fold{fold}", folder / "masks" / f"fold{fold}"
    for made in (images, masks):
        made.mkdir(parents=True, exist_ok=True)
    ids = np.stack([patch.ids for patch in patches])
    background = (ids.sum(-1, keepdims=True) == 0).astype(np.int32)
    np.save(images / "images.npy", np.stack([patch.image for patch in patches]))
    np.save(images / "types.npy", np.array([TISSUE[patch.source] for patch in patches]))
    np.save(masks / "masks.npy", np.concatenate([ids, background], axis=-1))
    np.save(folder / "ignore.npy", np.stack([patch.unknown for patch in patches]))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    Path(sys.argv[2]).mkdir(parents=True, exist_ok=True)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
