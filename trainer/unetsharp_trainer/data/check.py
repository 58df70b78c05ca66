"""What a PanNuke folder holds, and what is wrong with it."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unetsharp_engines.contract import BACKGROUND, NUCLEUS_CLASSES
from unetsharp_engines.errors import InputError
from unetsharp_trainer.data.appearance import MIN_MASK_PIXELS, darkest_take_red, darkness_under
from unetsharp_trainer.data.layout import complete_fold, find_arrays
from unetsharp_trainer.data.pannuke import Fold

__all__ = ["PUBLISHED_NUCLEI", "PUBLISHED_PATCHES", "DataReport", "FoldReport", "check_folds", "open_sound_folds"]

PUBLISHED_NUCLEI = {"Neoplastic": 77403, "Inflammatory": 32276, "Connective": 50585, "Dead": 2908, "Epithelial": 26572}
"""Nuclei in all of PanNuke (Gamper et al. 2020): 189,744."""
PUBLISHED_PATCHES = {1: 2656, 2: 2523, 3: 2722}
"""Patches by fold."""

_JUDGEABLE = 10
"""Fewest patches whose colours or masks are judged together."""
_LEAST_RED = 0.5
"""Least share of patches whose darkest pixels take red; see `darkest_take_red`."""
_LEAST_MATCHING = 0.85
"""Least share of patches that are darker under their own mask; see `darkness_under`."""


@dataclass(kw_only=True)
class FoldReport:
    """What one fold holds."""

    fold: int
    patches: int
    image_dtype: str
    mask_dtype: str
    tissues: dict[str, int]
    """Patches by tissue."""
    nuclei: dict[str, int]
    """Nuclei by class, counted as instance ids in each patch."""
    patches_with_unknown: int
    """Patches that hold nuclei of unknown class, which are neither learned nor judged."""


@dataclass(kw_only=True)
class DataReport:
    """What a data folder holds, and what is wrong, a line each."""

    folds: list[FoldReport] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Worth knowing, but in nobody's way."""

    @property
    def is_complete_pannuke(self) -> bool:
        """Whether the fold sizes are those of all of PanNuke, so that `PUBLISHED_NUCLEI` compares."""
        return {fold.fold: fold.patches for fold in self.folds} == PUBLISHED_PATCHES


def open_sound_folds(root: Path) -> tuple[list[Fold], list[str]]:
    """Open the folds below ``root`` that can be opened, and say of each other one what is wrong.

    Raises InputError where there is no fold at all.
    """
    folds, problems = [], []
    for number, arrays in find_arrays(root).items():
        try:
            folds.append(Fold(complete_fold(number, arrays)))
        except InputError as error:
            problems.append(str(error))
    return folds, problems


def check_folds(folds: Sequence[Fold], advance: Callable[[int], object] = lambda patches: None) -> DataReport:
    """Look at every patch of ``folds``; ``advance`` is called with 1 after each."""
    report = DataReport()
    places: dict[bytes, list[tuple[int, int]]] = defaultdict(list)
    for fold in folds:
        findings = _Findings(fold)
        try:
            for index in range(len(fold)):
                digest = findings.look_at(index)
                if digest is not None:
                    places[digest].append((fold.number, index))
                advance(1)
        except InputError as error:  # a damaged file ends its fold, not the check
            report.problems.append(str(error))
        report.folds.append(findings.report())
        report.problems += findings.problems()
        report.notes += [*fold.notes, *findings.notes()]
    _tell_duplicates(places, report)
    return report


class _Findings:
    """What was seen of a fold so far."""

    def __init__(self, fold: Fold) -> None:
        self.fold = fold
        self.nuclei: Counter[str] = Counter()
        self.with_unknown = 0
        self.faults: dict[str, list[int]] = defaultdict(list)
        self.takes_red: dict[str, list[bool]] = defaultdict(list)
        self.own_darker: list[bool] = []
        self._other_nuclei: npt.NDArray[np.bool_] | None = None

    def look_at(self, index: int) -> bytes | None:
        """Take note of a patch. Returns the digest of its image, or None where that is unsound."""
        levels, mask = np.asarray(self.fold.images[index]), np.asarray(self.fold.masks[index])
        on_nuclei = mask[..., : BACKGROUND.channel] > 0
        image_fault, mask_faults = _image_fault(levels), _mask_faults(mask, on_nuclei)
        for fault in ([image_fault] if image_fault else []) + mask_faults:
            self.faults[fault].append(index)
        self._count(index, mask, on_nuclei)
        if image_fault:
            return None
        image = self.fold.image(index)
        self._judge_colour(index, image)
        self._judge_mask(image, np.any(on_nuclei, axis=-1))
        return hashlib.blake2b(image.tobytes(), digest_size=16).digest()

    def report(self) -> FoldReport:
        """What the fold holds."""
        return FoldReport(
            fold=self.fold.number,
            patches=len(self.fold),
            image_dtype=str(self.fold.images.dtype),
            mask_dtype=str(self.fold.masks.dtype),
            tissues=dict(sorted(Counter(self.fold.tissues).items())),
            nuclei={c.name: self.nuclei[c.name] for c in NUCLEUS_CLASSES},
            patches_with_unknown=self.with_unknown,
        )

    def problems(self) -> list[str]:
        """What is wrong with the fold, a line each."""
        faults = [f"fold {self.fold.number}: {fault} in {_patches(where)}" for fault, where in self.faults.items()]
        return faults + self._colour_problems() + self._mask_problems()

    def notes(self) -> list[str]:
        """What could not be judged."""
        judged = min(len(self.own_darker), sum(map(len, self.takes_red.values())))
        if judged >= _JUDGEABLE:
            return []
        return [f"fold {self.fold.number}: only {judged} patches to judge colours and masks by; it takes {_JUDGEABLE}"]

    def _count(self, index: int, mask: npt.NDArray[Any], on_nuclei: npt.NDArray[np.bool_]) -> None:
        for tissue_class in NUCLEUS_CLASSES:
            ids = mask[..., tissue_class.channel][on_nuclei[..., tissue_class.channel]]
            self.nuclei[tissue_class.name] += len(np.unique(ids))
        if self.fold.ignored is not None:
            self.with_unknown += bool(np.asarray(self.fold.ignored[index]).any())

    def _judge_colour(self, index: int, image: npt.NDArray[np.uint8]) -> None:
        takes_red = darkest_take_red(image)
        if takes_red is not None:
            self.takes_red[self.fold.tissues[index]].append(takes_red)

    def _judge_mask(self, image: npt.NDArray[np.uint8], nuclei: npt.NDArray[np.bool_]) -> None:
        if not MIN_MASK_PIXELS <= nuclei.sum() <= nuclei.size - MIN_MASK_PIXELS:
            return
        if self._other_nuclei is not None:
            self.own_darker.append(darkness_under(image, nuclei) > darkness_under(image, self._other_nuclei))
        self._other_nuclei = nuclei

    def _colour_problems(self) -> list[str]:
        everything = [taken for judged in self.takes_red.values() for taken in judged]
        groups = {"": everything} if _swapped(everything) else {f" of {t}": j for t, j in self.takes_red.items()}
        return [
            f"fold {self.fold.number}: red and blue look swapped (BGR): in {judged.count(False)} of {len(judged)} "
            f"patches{which} the nuclei take more blue than red; save the images as RGB"
            for which, judged in groups.items()
            if _swapped(judged)
        ]

    def _mask_problems(self) -> list[str]:
        matching, judged = sum(self.own_darker), len(self.own_darker)
        if judged < _JUDGEABLE or matching >= _LEAST_MATCHING * judged:
            return []
        return [
            f"fold {self.fold.number}: masks do not match the images: only {matching} of {judged} patches are darker "
            "under their own nuclei than under another patch's; check order and orientation of both"
        ]


def _swapped(takes_red: list[bool]) -> bool:
    return len(takes_red) >= _JUDGEABLE and sum(takes_red) < _LEAST_RED * len(takes_red)


def _image_fault(levels: npt.NDArray[Any]) -> str | None:
    low, high = float(levels.min()), float(levels.max())
    if not np.isfinite([low, high]).all():
        return "levels that are NaN or infinite"
    if low < 0 or high > 255:
        return "levels outside 0 to 255"
    if low == high:
        return "one flat colour"
    if levels.dtype.kind == "f" and high <= 1:
        return "levels from 0 to 1 (multiply by 255)"
    return None


def _mask_faults(mask: npt.NDArray[Any], on_nuclei: npt.NDArray[np.bool_]) -> list[str]:
    if not np.isfinite([mask.min(), mask.max()]).all() or mask.min() < 0:
        return ["mask values that are NaN, infinite or negative"]
    classes_here = on_nuclei.sum(axis=-1)
    ids = mask[..., : BACKGROUND.channel][on_nuclei]
    faults = {
        "instance ids that are no whole numbers": not np.array_equal(ids, np.rint(ids)),
        "nuclei of two classes in one pixel (the later class counts)": bool((classes_here > 1).any()),
        "a background channel that is not set exactly where no nucleus is (it is not read)": not np.array_equal(
            mask[..., BACKGROUND.channel] > 0, classes_here == 0
        ),
    }
    return [fault for fault, seen in faults.items() if seen]


def _tell_duplicates(places: dict[bytes, list[tuple[int, int]]], report: DataReport) -> None:
    across: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for where in places.values():
        if len(where) > 1:
            folds = tuple(sorted({fold for fold, _ in where}))
            across[folds].append(" = ".join(f"{fold}:{index}" for fold, index in where))
    for folds, same in sorted(across.items()):
        listed = f"{', '.join(same[:3])}{', …' if len(same) > 3 else ''} (fold:patch)"
        if len(folds) == 1:
            report.notes.append(f"fold {folds[0]}: {len(same)} images come more than once: {listed}")
        else:
            named = " and ".join(map(str, folds))
            report.problems.append(f"folds {named} share {len(same)} images, so none can test another: {listed}")


def _patches(indices: list[int]) -> str:
    shown = ", ".join(map(str, indices[:5])) + (", …" if len(indices) > 5 else "")
    return f"{len(indices)} patch{'' if len(indices) == 1 else 'es'}: {shown}"
