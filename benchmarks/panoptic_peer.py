"""bPQ and mPQ beside PanNuke's official script, on random maps and, where given, on the masks of a PanNuke folder.

    git clone https://github.com/TissueImageAnalytics/PanNuke-metrics
    pip install pandas docopt          # what the official script needs
    python benchmarks/panoptic_peer.py PanNuke-metrics --data PANNUKE_DIR --out benchmarks/results/panoptic_peer.json

The official ``run.py`` runs whole, as its users run it, on files; its tissue table and class lines are read back. A
prediction for real masks is those masks with nuclei moved, grown, shrunk, lost, invented and given another class.
Exits 1 if any number differs by more than 1e-12.
"""

import argparse
import csv
import json
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from evidence import evidence, write_json
from unetsharp_engines.contract import NUCLEUS_CLASSES
from unetsharp_trainer.data.pannuke import open_folds
from unetsharp_trainer.metrics.panoptic import PanopticTable

TOLERANCE = 1e-12
TISSUES = ["Adrenal_gland", "Breast", "Colon", "Kidney", "Ovarian"]
"""Names the official script knows; Kidney gets images without nuclei only."""
SIDE = 256

Masks = npt.NDArray[np.int32]


def random_nuclei(rng: np.random.Generator, count: int) -> Masks:
    """Discs of random class at random places, int32 [256, 256, 5]; later ones cover earlier ones of their class."""
    masks = np.zeros((SIDE, SIDE, len(NUCLEUS_CLASSES)), np.int32)
    rows, columns = np.ogrid[:SIDE, :SIDE]
    taken = np.zeros((SIDE, SIDE), bool)  # classes do not overlap: the official script cannot take hidden nuclei
    for number in rng.permutation(np.arange(1, count + 1) * 3):  # ids with gaps, in no order
        y, x, radius = rng.integers(0, SIDE), rng.integers(0, SIDE), rng.integers(3, 14)
        disc = ((rows - y) ** 2 + (columns - x) ** 2 <= radius**2) & ~taken
        masks[disc, rng.choice(5, p=[0.4, 0.2, 0.2, 0.02, 0.18])] = number
        taken |= disc
    return masks


def disturbed(masks: Masks, rng: np.random.Generator) -> Masks:
    """What a fair network might have said of ``masks``."""
    said = np.zeros_like(masks)
    free = np.ones(masks.shape[:2], bool)
    for channel in range(masks.shape[-1]):
        for number in np.unique(masks[..., channel][masks[..., channel] > 0]):
            if rng.random() < 0.1:
                continue
            nucleus = changed(masks[..., channel] == number, rng) & free
            said[nucleus, channel if rng.random() < 0.85 else rng.integers(5)] = number
            free &= ~nucleus
    invented = random_nuclei(rng, int(rng.integers(0, 4)))
    return np.where(free[..., None] & (invented > 0), invented + said.max(), said).astype(np.int32)


def changed(nucleus: npt.NDArray[np.bool_], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """A nucleus moved by up to 3 px, grown or shrunk by up to 2 px."""
    moved = np.roll(nucleus, tuple(rng.integers(-3, 4, size=2)), axis=(0, 1))
    steps = int(rng.integers(-2, 3))
    if steps == 0:
        return moved
    change = ndimage.binary_dilation if steps > 0 else ndimage.binary_erosion
    return np.asarray(change(moved, iterations=abs(steps)))


def random_case(images: int, rng: np.random.Generator) -> tuple[Masks, Masks, list[str]]:
    """Truth, prediction and tissues of ``images`` random images; some without nuclei on one side or both."""
    tissues = [str(name) for name in rng.choice(TISSUES, size=images)]
    truth = np.stack([random_nuclei(rng, 0 if t == "Kidney" else int(rng.integers(0, 40))) for t in tissues])
    said = np.stack([disturbed(masks, rng) if rng.random() < 0.95 else masks * 0 for masks in truth])
    return truth, said, tissues


def real_case(data: Path, rng: np.random.Generator) -> tuple[Masks, Masks, list[str]]:
    """All masks of a PanNuke folder, and predictions made from them."""
    folds = open_folds(data).values()
    truth = np.stack([np.asarray(fold.masks[i])[..., :5].astype(np.int32) for fold in folds for i in range(len(fold))])
    said = np.stack([disturbed(masks, rng) for masks in truth])
    return truth, said, [tissue for fold in folds for tissue in fold.tissues]


def official(peer: Path, truth: Masks, said: Masks, tissues: list[str]) -> tuple[dict[str, float], float]:
    """Run the official script; its numbers by name, and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "true").mkdir()
        (place / "pred").mkdir()
        np.save(place / "true" / "masks.npy", truth)
        np.save(place / "true" / "types.npy", np.array(tissues))
        np.save(place / "pred" / "masks.npy", said)
        paths = [f"--{name}_path={place / name}" for name in ("true", "pred")]
        command = [sys.executable, "-W", "ignore", "run.py", *paths, f"--save_path={place / 'out'}"]
        started = time.perf_counter()
        done = subprocess.run(command, cwd=peer, check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        return dict(official_numbers(done.stdout, place / "out" / "tissue_stats.csv")), seconds


def official_numbers(printed: str, table: Path) -> Iterator[tuple[str, float]]:
    """mPQ and bPQ of each tissue and their means from the CSV; class PQs from what it prints (its CSV is wrong)."""
    names = ("Neoplastic", "Inflammatory", "Connective", "Dead", "Non-Neoplastic")
    for tissue_class, name in zip(NUCLEUS_CLASSES, names, strict=True):
        found = re.search(rf"^{name} PQ: (\S+)", printed, re.MULTILINE)
        assert found, printed
        yield f"PQ {tissue_class.name}", float(found[1])
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield f"mPQ {row['Tissue name']}", float(row["PQ"] or "nan")
            yield f"bPQ {row['Tissue name']}", float(row["PQ bin"] or "nan")


def own(truth: Masks, said: Masks, tissues: list[str]) -> tuple[dict[str, float], float]:
    """The same numbers by this project, and its seconds."""
    started = time.perf_counter()
    table = PanopticTable()
    for image, guess, tissue in zip(truth, said, tissues, strict=True):
        table.add(tissue, image, guess)
    numbers = {f"PQ {c.name}": pq for c, pq in zip(NUCLEUS_CLASSES, table.class_pq().tolist(), strict=True)}
    numbers |= {f"mPQ {row.tissue}": row.mpq for row in table.by_tissue()}
    numbers |= {f"bPQ {row.tissue}": row.bpq for row in table.by_tissue()}
    numbers |= {"mPQ mean": table.mpq(), "bPQ mean": table.bpq()}
    return numbers, time.perf_counter() - started


def compare(peer: Path, truth: Masks, said: Masks, tissues: list[str]) -> dict[str, Any]:
    """Both on one case. The official script lists all its 19 tissues: those without images have no number."""
    theirs, their_seconds = official(peer, truth, said, tissues)
    ours, our_seconds = own(truth, said, tissues)
    assert all(np.isnan(theirs[name]) for name in theirs.keys() - ours.keys()), theirs
    pairs = {name: (ours[name], theirs[name]) for name in ours}
    assert all(np.isnan(a) == np.isnan(b) for a, b in pairs.values()), pairs
    return {
        "images": len(truth),
        "true_nuclei": int(sum(len(np.unique(c[c > 0])) for image in truth for c in np.moveaxis(image, -1, 0))),
        "numbers_compared": len(pairs),
        "undefined_in_both": sum(bool(np.isnan(a)) for a, _ in pairs.values()),
        "largest_difference": max(abs(a - b) for a, b in pairs.values() if not np.isnan(a)),
        "mPQ": ours["mPQ mean"],
        "bPQ": ours["bPQ mean"],
        "official_seconds_with_startup": round(their_seconds, 2),
        "own_seconds": round(our_seconds, 2),
    }


def main() -> int:
    """Run the comparison; 0 where all numbers agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", type=Path, help="a checkout of PanNuke-metrics")
    parser.add_argument("--data", type=Path, help="a PanNuke folder")
    parser.add_argument("--images", type=int, default=100, help="random images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    cases = {"random": random_case(arguments.images, rng)}
    if arguments.data:
        cases["real masks, disturbed"] = real_case(arguments.data, rng)
    result = {
        **evidence(
            "bPQ, mPQ and class PQ against github.com/TissueImageAnalytics/PanNuke-metrics run.py",
            ("numpy", "scipy"),
            ("trainer", "benchmarks/panoptic_peer.py"),
        ),
        "seed": arguments.seed,
        "tolerance": TOLERANCE,
        "cases": {name: compare(arguments.peer.resolve(), *case) for name, case in cases.items()},
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        write_json(arguments.out, result)
    return int(max(case["largest_difference"] for case in result["cases"].values()) > TOLERANCE)


if __name__ == "__main__":
    warnings.simplefilter("error")
    sys.exit(main())
