"""The edge-sized U-Net# trained from random weights on a PanNuke folder's folds 1 and 2, tested on fold 3, on the CPU.

OMP_NUM_THREADS=1 python benchmarks/edge_training.py PANNUKE_DIR --out benchmarks/results/pannuke_mini_edge.json
"""

import argparse
import json
import tempfile
from pathlib import Path

from evidence import evidence, write_json
from training_runs import trained_and_judged

OPTIONS = {
    "--recipe": "scratch", "--encoder": "regnetx_002", "--width": "16", "--encoder-weights": "none",
    "--folds": "1+2,-,3", "--size": "256", "--batch": "4", "--precision": "bfloat16", "--device": "cpu",
}  # fmt: skip


def main() -> None:
    """Train, judge, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="PanNuke folder")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--epochs", type=int, default=28)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = {**OPTIONS, "--epochs": str(arguments.epochs)}
        run = trained_and_judged(arguments.data, Path(folder, "run"), options, "3")
    what = "edge-sized U-Net# from random weights, trained on folds 1 and 2, tested on fold 3, CPU"
    report = {**evidence(what, ("torch", "timm", "albumentations"), ("trainer", "benchmarks/edge_training.py")), **run}
    print(json.dumps(report["test"], indent=1))
    write_json(arguments.out, report)


if __name__ == "__main__":
    main()
