"""The paper's configuration on a GPU: random weights, five minutes, one run for each recipe that is to be compared.

    python benchmarks/gpu_training.py PANNUKE_DIR --runs RUNS --out benchmarks/results/gpu_training.json

The bar: foreground Dice ≥ 0.78 on the colon patches (CoNSeP's) of fold 3 after five GPU minutes, by any of the recipes.
Each run takes ``--minutes`` of training. Beside Dice it tells training images/s, peak memory, and how busy the GPU was
(nvidia-smi, sampled each second): idle under 10% is the aim. The runs stay in RUNS.
"""

import argparse
import re
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evidence import evidence, write_json
from training_runs import trained_and_judged

BAR = 0.78
SAME = {
    "--encoder-weights": "none", "--folds": "1+2,-,3", "--batch": "16", "--foreground-weight": "1", "--device": "cuda",
    "--workers": "6",
}  # fmt: skip
SCRATCH = {"--recipe": "scratch", "--lr": "1e-3"}
RECIPES = {
    "scratch": SCRATCH,
    "scratch, no stain normalization": {**SCRATCH, "--stain": "none"},
    "scratch, paper's loss": {**SCRATCH, "--loss": "paper"},
    "scratch, paper's optimizer": {**SCRATCH, "--optimizer": "adabound", "--lr": "1e-4"},
    "scratch, paper's augmentation": {**SCRATCH, "--augmentation": "paper"},
    "paper": {"--recipe": "paper", "--accumulate": "1"},
}


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("data", type=Path, help="PanNuke folder")
    made.add_argument("--out", type=Path, required=True, help="JSON file to write")
    made.add_argument("--runs", type=Path, required=True, help="folder for the runs: weights, history, pictures")
    made.add_argument("--minutes", default="5", help="training time of each run")
    made.add_argument("--only", nargs="*", choices=list(RECIPES), default=list(RECIPES), help="recipes to run")
    return made


def main() -> None:
    """Run the recipes asked for, print and write after each."""
    arguments = parser().parse_args()
    runs: dict[str, Any] = {}
    for name in arguments.only:
        options = {**SAME, **RECIPES[name], "--minutes": arguments.minutes}
        with gpu_use() as use:
            runs[name] = trained_and_judged(arguments.data, arguments.runs / re.sub(r"\W+", "_", name), options, "3")
        runs[name]["gpu_busy_percent"] = statistics.median(use) if use else None
        dice = runs[name]["test"]["Colon"]["foreground_dice"]
        print(f"{name}: foreground Dice {dice} on colon, bar {BAR} {'held' if dice >= BAR else 'MISSED'}", flush=True)
        write(arguments.out, runs)


@contextmanager
def gpu_use() -> Iterator[list[float]]:
    """Collect the GPU's utilization, percent, each second of the block; the list fills when the block ends."""
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop=1"]
    use: list[float] = []
    with subprocess.Popen(query, stdout=subprocess.PIPE, text=True) as sampler:
        try:
            yield use
        finally:
            sampler.terminate()
            use += [float(line) for line in sampler.communicate()[0].splitlines()]


def write(path: Path, runs: dict[str, Any]) -> None:
    """All runs so far, with their evidence."""
    what = f"paper's configuration from random weights on a GPU; bar: foreground Dice {BAR} on fold 3's colon patches"
    versions = ("torch", "timm", "albumentations")
    report = {**evidence(what, versions, ("trainer", "benchmarks/gpu_training.py")), "gpu": gpu_name(), "runs": runs}
    write_json(path, report)


def gpu_name() -> str:
    """As nvidia-smi tells it."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
