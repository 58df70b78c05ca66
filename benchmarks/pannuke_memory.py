"""How much memory PanNuke's largest fold takes, of the kind that counts: what no file backs.

    python benchmarks/pannuke_memory.py --scratch DIR --out benchmarks/results/pannuke_memory.json

Makes one fold of full size in DIR, float64 as released (2,722 patches: 4.3 GB of images, 8.6 GB of masks; sparse files,
of which every fourth patch is filled, so DIR needs 4 GB), reads every patch, checks the fold, prepares it with two
processes, reads what was prepared, and removes it all. Memory is the sum of RssAnon over this process and its children,
sampled every 50 ms; pages of mapped files are not in it, since the system takes them back when it needs them.
Exits 1 if it ever reaches 2 GB.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from evidence import evidence, write_json
from unetsharp_trainer.data.check import PUBLISHED_PATCHES, check_folds
from unetsharp_trainer.data.pannuke import Fold, open_folds
from unetsharp_trainer.data.prepared import PreparedFold, prepare

LIMIT = 2e9
FILLED_EVERY = 4


def main() -> None:
    """Make, measure, print, write the JSON, remove."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--scratch", type=Path, required=True, help="folder with 4 GB of room")
    parser.add_argument("--patches", type=int, default=PUBLISHED_PATCHES[3], help="patches in the fold")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        write_fold(Path(name), arguments.patches)
        phases = measure(Path(name))
    peak = max(phase["peak_anonymous_bytes"] for phase in phases.values())
    sources = ("benchmarks/pannuke_memory.py", "trainer/unetsharp_trainer/data", "engines/unetsharp_engines/stain")
    report = {
        **evidence("peak anonymous memory on a fold of PanNuke's full size", ("numpy",), sources),
        "patches": arguments.patches,
        "file_bytes": arguments.patches * 256 * 256 * 8 * (3 + 6),
        "limit_bytes": LIMIT,
        "peak_anonymous_bytes": peak,
        "phases": phases,
    }
    write_json(arguments.out, report)
    print(json.dumps(report, indent=2))
    sys.exit(peak >= LIMIT)


def write_fold(root: Path, patches: int) -> None:
    """One fold in the released layout; filled patches have 30 nuclei of two stains, the others are zeros."""
    for part in ("images", "masks"):
        (root / f"Fold 3/{part}/fold3").mkdir(parents=True)
    np.save(root / "Fold 3/images/fold3/types.npy", np.array(["Breast", "Colon"] * patches)[:patches])
    images, masks = (
        np.lib.format.open_memmap(root / f"Fold 3/{part}/fold3/{part}.npy", "w+", np.float64, (patches, 256, 256, c))
        for part, c in (("images", 3), ("masks", 6))
    )
    for index in range(0, patches, FILLED_EVERY):
        images[index], masks[index] = patch(np.random.default_rng(index))


def patch(rng: np.random.Generator) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """An image of hematoxylin discs on eosin, and its masks in PanNuke's form."""
    rows, columns = np.ogrid[:256, :256]
    masks = np.zeros((256, 256, 6))
    for nucleus in range(1, 31):
        row, column = rng.integers(0, 256, 2)
        disc = (rows - row) ** 2 + (columns - column) ** 2 < rng.integers(4, 14) ** 2
        masks[disc, :5] = 0
        masks[disc, rng.integers(5)] = nucleus
    masks[..., 5] = ~masks[..., :5].any(axis=-1)
    amounts = np.stack([0.1 + 1.2 * (1 - masks[..., 5]), np.full((256, 256), 0.5)], axis=-1)
    amounts *= rng.gamma(20, 1 / 20, amounts.shape)
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    return np.rint(np.clip(240 * np.exp(-amounts @ stains), 0, 255)), masks


def measure(root: Path) -> dict[str, dict[str, float]]:
    """Peak anonymous memory and seconds of each phase."""
    phases: dict[str, dict[str, float]] = {}
    with watched(phases, "read every patch"):
        fold = open_folds(root)[3]
        read(fold)
    with watched(phases, "check"):
        check_folds([fold])
    with watched(phases, "prepare, two processes"):
        (prepared,) = prepare([fold], root / "cache", workers=2)
    with watched(phases, "read every prepared patch"):
        read_prepared(prepared)
    return phases


def read(fold: Fold) -> None:
    """Image, target, instances and their classes of every patch."""
    for index in range(len(fold)):
        fold.image(index), fold.target(index), fold.instances(index), fold.instance_classes(index)


def read_prepared(prepared: PreparedFold) -> None:
    """Every byte of the prepared arrays."""
    for index in range(len(prepared)):
        prepared.images[index].sum(), prepared.targets[index].sum(), prepared.instances[index].sum()


@contextmanager
def watched(phases: dict[str, dict[str, float]], name: str) -> Iterator[None]:
    """Sample memory while the block runs and note its peak under ``name``."""
    over = threading.Event()
    samples: list[int] = []

    def watch() -> None:
        samples.append(sum(map(anonymous_bytes, family())))
        while not over.wait(0.05):
            samples.append(sum(map(anonymous_bytes, family())))

    thread = threading.Thread(target=watch)
    start = time.perf_counter()
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    phases[name] = {
        "peak_anonymous_bytes": max(samples),
        "samples": len(samples),
        "seconds": round(time.perf_counter() - start, 1),
    }


def family() -> list[int]:
    """This process and its children."""
    me = os.getpid()
    return [me, *(int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat") if parent_of(stat) == me)]


def parent_of(stat: Path) -> int:
    """Id of the parent of the process whose ``/proc/PID/stat`` this is; 0 where it ended meanwhile."""
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def anonymous_bytes(process: int) -> int:
    """RssAnon of a process; 0 where it ended meanwhile."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


if __name__ == "__main__":
    main()
