"""Which folds ``--fold`` names."""

import re
from pathlib import Path

from unetsharp_engines.errors import InputError
from unetsharp_trainer.data.pannuke import Fold, open_folds

__all__ = ["open_fold_numbers"]


def open_fold_numbers(root: Path, text: str) -> list[Fold]:
    """Open the folds of the PanNuke folder ``root`` that ``text`` names: ``3``, or ``1+2`` for two.

    Raises InputError for other text, a fold that ``root`` lacks, and what `open_folds` refuses.
    """
    if not re.fullmatch(r"\d+(\+\d+)*", text):
        raise InputError(f"--fold {text}: wanted a fold's number, such as 3, or several, such as 1+2")
    folds = open_folds(root)
    numbers = sorted(set(map(int, text.split("+"))))
    for number in numbers:
        if number not in folds:
            raise InputError(f"--fold {text}: {root} has no fold {number}; it has {', '.join(map(str, folds))}")
    return [folds[number] for number in numbers]
