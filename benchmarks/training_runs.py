"""One training run by the command line a user has, and its judgement, as a record."""

import csv
import json
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from evidence import portable

__all__ = ["judged", "trained_and_judged"]


def trained_and_judged(data: Path, out: Path, options: dict[str, str], test_fold: str) -> dict[str, Any]:
    """Run ``unetsharp train`` with ``options``, then `judged` on ``test_fold``: what both said, shortened."""
    training = ["train", "--data", str(data), "--out", str(out), *(word for pair in options.items() for word in pair)]
    began = time.monotonic()
    trained = _unetsharp(training)
    seconds = time.monotonic() - began
    return {
        "command": portable(["unetsharp", *training]),
        "seconds": round(seconds, 1),
        "epochs": trained["epochs"],
        "best_epoch": trained["best_epoch"],
        "training_images_per_second": round(statistics.median(_column(out, "images_per_second")), 2),
        "peak_memory_gb": round(max(_column(out, "memory_mb")) / 1024, 2),
        "test": judged(Path(trained["weights"]), data, test_fold),
    }


def judged(weights: Path, data: Path, fold: str) -> dict[str, Any]:
    """Run ``unetsharp evaluate`` by PyTorch: scores of all patches, and of each tissue under its name."""
    scores = _unetsharp(["evaluate", str(weights), "--data", str(data), "--fold", fold, "--runtime", "torch"])
    return {"all": _short(scores), **{name: _short(tissue) for name, tissue in scores["tissues"].items()}}


def _unetsharp(arguments: list[str]) -> dict[str, Any]:
    print("unetsharp", shlex.join(arguments), flush=True)
    command = [sys.executable, "-m", "unetsharp", *arguments, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _column(out: Path, name: str) -> list[float]:
    """One number of each epoch."""
    with (out / "history.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def _short(scores: dict[str, Any]) -> dict[str, Any]:
    pixels = scores["pixels"]
    return {
        "patches": scores["patches"],
        "foreground_dice": _rounded(pixels["foreground"]["dice"]),
        "pooled_dice": _rounded(pixels["average_without_background_pooled"]["dice"]),
        "class_mean_dice": _rounded(pixels["average_without_background_class_mean"]["dice"]),
        "class_dice": {name: _rounded(row["dice"]) for name, row in pixels["classes"].items()},
        "detection_f1": _rounded(scores["nuclei"]["detection"]["f1"]),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
