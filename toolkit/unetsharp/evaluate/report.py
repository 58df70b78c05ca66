"""Write an evaluation into a folder."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unetsharp.evaluate.confusion_picture import confusion_picture
from unetsharp.evaluate.evaluation import Evaluation
from unetsharp.evaluate.examples_picture import examples_picture
from unetsharp.evaluate.tables import markdown
from unetsharp_engines.contract import NUCLEUS_CLASSES
from unetsharp_engines.files import replacing
from unetsharp_engines.runtimes.base import Runtime
from unetsharp_trainer.data.pannuke import Fold

__all__ = ["write_report"]


def write_report(
    evaluation: Evaluation, record: dict[str, Any], runtime: Runtime, folds: Sequence[Fold], folder: Path
) -> list[Path]:
    """Write tables, data and pictures into ``folder``, which is made; the files written.

    ``evaluation.json`` (``record``: all counts and scores, and what they were got with), ``evaluation.md`` (the
    tables), ``patches.csv`` (each patch's panoptic quality), ``confusion.png``, ``examples.png`` (patches from the
    worst to the best, for which ``runtime`` runs some of ``folds`` again).
    """
    texts = {
        "evaluation.json": json.dumps(record, indent=2, allow_nan=False) + "\n",
        "evaluation.md": markdown(evaluation),
    }
    for name, text in texts.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    _write_patches(evaluation, folder / "patches.csv")
    pictures = {
        "confusion.png": confusion_picture(evaluation),
        "examples.png": examples_picture(evaluation, runtime, folds),
    }
    for name, picture in pictures.items():
        with replacing(folder / name) as temporary:
            picture.save(temporary)
    return [folder / name for name in (*texts, "patches.csv", *pictures)]


def _write_patches(evaluation: Evaluation, path: Path) -> None:
    """One line a patch; an empty cell where the truth has no such nucleus."""
    quality = evaluation.panoptic
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["fold", "patch", "tissue", "bpq", *(f"pq_{c.name.lower()}" for c in NUCLEUS_CLASSES)])
        for patch, binary, classes in zip(evaluation.patches, quality.binary, quality.by_class, strict=True):
            writer.writerow([patch.fold, patch.index, patch.tissue, *map(_cell, [binary, *classes])])


def _cell(score: float) -> str:
    return "" if score != score else f"{score:.4f}"  # NaN alone differs from itself
