"""What loss, optimizer and augmentation each contribute from random weights, in short runs that differ in one part.

    OMP_NUM_THREADS=1 python benchmarks/recipe_parts.py PANNUKE_DIR --out benchmarks/results/recipe_parts.json

The edge-sized U-Net# (regnetx_002, c = 16) learns from fold 1 and is judged on fold 3: every run sees the same number
of windows in the same order. The runs are short, so they say what each part brings early, not where it ends.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from evidence import evidence, write_json
from training_runs import trained_and_judged

EDGE = {"--encoder": "regnetx_002", "--width": "16", "--encoder-weights": "none", "--folds": "1,-,3", "--device": "cpu"}
SAME = {"--size": "128", "--batch": "4", "--accumulate": "1", "--precision": "bfloat16", "--foreground-weight": "1"}
PARTS = {
    "scratch": {"--recipe": "scratch"},
    "scratch, paper's loss": {"--recipe": "scratch", "--loss": "paper"},
    "scratch, author's loss": {"--recipe": "scratch", "--loss": "author"},
    "scratch, paper's optimizer": {"--recipe": "scratch", "--optimizer": "adabound", "--lr": "1e-4"},
    "scratch, paper's augmentation": {"--recipe": "scratch", "--augmentation": "paper"},
    "scratch, no stain normalization": {"--recipe": "scratch", "--stain": "none"},
    "paper": {"--recipe": "paper"},
}


def main() -> None:
    """Run all, print and write after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="PanNuke folder")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="run these and keep the file's other runs")
    arguments = parser.parse_args()
    runs: dict[str, Any] = json.loads(arguments.out.read_text())["runs"] if arguments.only else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only or PARTS:
            options = {**EDGE, **SAME, **PARTS[name], "--epochs": str(arguments.epochs)}
            runs[name] = trained_and_judged(arguments.data, Path(folder, name.replace(" ", "_")), options, "3")
            print(f"{name}: {runs[name]['test']['all']['foreground_dice']}, {runs[name]['seconds']} s", flush=True)
            write(arguments.out, runs)


def write(path: Path, runs: dict[str, Any]) -> None:
    """All runs so far, with their evidence."""
    what = "foreground Dice after short training from random weights, one part of the recipe changed at a time"
    versions = ("torch", "timm", "albumentations", "adabound")
    report = {**evidence(what, versions, ("trainer", "benchmarks/recipe_parts.py")), "runs": runs}
    write_json(path, report)


if __name__ == "__main__":
    main()
