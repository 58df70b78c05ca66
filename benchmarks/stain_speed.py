"""Time per 256² tile of stain estimation and normalization on one core, beside torchstain's, in one run.

    OMP_NUM_THREADS=1 python benchmarks/stain_speed.py --out benchmarks/results/stain_speed.json

The two take turns on each tile, so that whatever else the machine does, it does to both; what is measured is the
processor's time, so waiting for the core does not count. torchstain runs as it ships:
torch backend, float32, one thread, without its separate stain pictures; ours computes in float64. Tiles are the
repository's (`tests/data`), reflected to 256², or the ``images`` (uint8 [N, 256, 256, 3]) of ``--tiles FILE.npz``.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torchstain.torch.normalizers.macenko import TorchMacenkoNormalizer

from evidence import ROOT, evidence, write_json
from unetsharp_engines.stain import StainStatus, estimate

Tile = npt.NDArray[np.uint8]


def main() -> None:
    """Time both, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--tiles", type=Path, help="npz file with `images`; default: the repository's tiles")
    parser.add_argument("--rounds", type=int, default=40, help="turns each takes on each tile")
    arguments = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        parser.error("one core is what is measured: run with OMP_NUM_THREADS=1")
    torch.set_num_threads(1)
    tiles = repository_tiles() if arguments.tiles is None else np.load(arguments.tiles)["images"]
    sound = [tile for tile in tiles if estimate(tile).status is StainStatus.OK]
    what = "Macenko estimation and normalization of one 256 by 256 tile: processor time on one core"
    proof = evidence(what, ("numpy", "torch", "torchstain"), ("engines",))
    report = {**proof, "tiles": len(sound), "rounds": arguments.rounds, **compare(sound, arguments.rounds)}
    write_json(arguments.out, report)
    print(json.dumps(report, indent=2))


def repository_tiles() -> list[Tile]:
    """The tiles of ``tests/data/dsb_tiles.png``, 192², reflected at their edges to 256²."""
    sheet = np.asarray(Image.open(ROOT / "tests" / "data" / "dsb_tiles.png"))
    tiles = sheet.reshape(2, 192, 3, 192, 3).transpose(0, 2, 1, 3, 4).reshape(6, 192, 192, 3)
    return [np.pad(tile, ((0, 64), (0, 64), (0, 0)), mode="reflect") for tile in tiles]


def compare(tiles: list[Tile], rounds: int) -> dict[str, Any]:
    """Milliseconds a tile of each contestant, and how many times faster than torchstain ours is."""
    contestants: dict[str, Callable[[Tile], object]] = {
        "torchstain": torchstain_normalize(),
        "unetsharp": lambda tile: estimate(tile).transform.apply(tile),
        "unetsharp_estimate_only": estimate,
    }
    seconds = {name: np.empty((rounds, len(tiles))) for name in contestants}
    for turn in range(-1, rounds):  # the turn before the first warms up
        for index, tile in enumerate(tiles):
            for name, run in contestants.items():
                start = time.process_time()
                run(tile)
                seconds[name][turn, index] = time.process_time() - start
    # Of each tile its minimum and median turn; of those the mean over tiles.
    minimum = {name: float(times.min(axis=0).mean() * 1e3) for name, times in seconds.items()}
    median = {name: float(np.median(times, axis=0).mean() * 1e3) for name, times in seconds.items()}
    return {
        "milliseconds_minimum": {name: round(value, 3) for name, value in minimum.items()},
        "milliseconds_median": {name: round(value, 3) for name, value in median.items()},
        "times_faster_by_minimum": round(minimum["torchstain"] / minimum["unetsharp"], 2),
        "times_faster_by_median": round(median["torchstain"] / median["unetsharp"], 2),
    }


def torchstain_normalize() -> Callable[[Tile], object]:
    """torchstain's estimation and normalization of uint8 [H, W, 3]."""
    normalizer = TorchMacenkoNormalizer()
    return lambda tile: normalizer.normalize(torch.from_numpy(tile).permute(2, 0, 1), stains=False)


if __name__ == "__main__":
    main()
