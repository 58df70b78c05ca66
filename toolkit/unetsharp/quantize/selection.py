"""Which patches to calibrate on and to judge by: few, but of every tissue and class."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from unetsharp_engines.contract import NUCLEUS_CLASSES
from unetsharp_engines.errors import InputError
from unetsharp_trainer.data.pannuke import Fold

__all__ = ["Patch", "Selection", "candidates", "select", "split_folds"]

_POOL = 2048
"""Patches looked at: reading the masks of a whole fold of PanNuke, 8 GB, would take longer than calibrating."""


@dataclass(frozen=True, kw_only=True)
class Patch:
    """Where a patch is, and what it shows."""

    fold: int
    index: int
    tissue: str
    classes: tuple[str, ...]
    """Of its nuclei."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Chosen patches, by fold and index rising."""

    patches: tuple[Patch, ...]
    sha256: str
    """Of their images, in order: equal hashes are equal calibration sets."""

    def counts(self) -> dict[str, dict[str, int]]:
        """Patches of each tissue, and patches with nuclei of each class."""
        tissues = Counter(patch.tissue for patch in self.patches)
        classes = Counter(name for patch in self.patches for name in patch.classes)
        return {"tissues": dict(sorted(tissues.items())), "classes": dict(sorted(classes.items()))}


def split_folds(folds: dict[int, Fold]) -> tuple[Fold, Fold]:
    """The fold to calibrate on and the one to judge by: the two lowest numbers, one for both where there is but one.

    The paper trains on fold 1, validates on 2 and tests on 3: with all three here, the test fold stays unseen.
    """
    first, *others = (folds[number] for number in sorted(folds))
    return first, others[0] if others else first


def candidates(fold: Fold, advance: Callable[[int], object] = lambda _: None) -> list[Patch]:
    """The patches of ``fold`` to choose from, up to 2048, in an order that depends on nothing but their numbers."""
    pool = sorted(_shuffled(fold.number, range(len(fold)))[:_POOL])  # rising: compressed arrays are read in order
    found = []
    for index in pool:
        present = set(np.unique(fold.target(index)).tolist())
        classes = tuple(c.name for c in NUCLEUS_CLASSES if c.channel in present)
        found.append(Patch(fold=fold.number, index=index, tissue=fold.tissues[index], classes=classes))
        advance(1)
    return found


def select(fold: Fold, pool: Iterable[Patch], count: int) -> Selection:
    """Choose ``count`` patches, or all if there are fewer: at each step the one that shows most of what was seen least.

    A tissue, a class, and a class in a tissue each count 1 the first time, 1/2 the second, and so on; among equals
    the order is that of a hash. Raises InputError if ``pool`` is empty.
    """
    waiting = _by_kind(fold, pool)
    if not waiting:
        raise InputError(f"{fold.files.images}: no patch is left to choose from; give a folder with more patches")
    seen: Counter[tuple[str, ...]] = Counter()
    chosen: list[Patch] = []
    while waiting and len(chosen) < count:
        kind = max(waiting, key=lambda kind: sum(1 / (1 + seen[group]) for group in _groups(*kind)))
        seen.update(_groups(*kind))
        chosen.append(waiting[kind].pop())
        if not waiting[kind]:
            del waiting[kind]
    patches = tuple(sorted(chosen, key=lambda patch: patch.index))
    return Selection(patches=patches, sha256=_digest(fold, patches))


_Kind = tuple[str, tuple[str, ...]]


def _by_kind(fold: Fold, pool: Iterable[Patch]) -> dict[_Kind, list[Patch]]:
    """By tissue and classes: patches that show the same are interchangeable. The last of a list is taken first."""
    patches = {patch.index: patch for patch in pool}
    kinds: dict[_Kind, list[Patch]] = defaultdict(list)
    for index in _shuffled(fold.number, patches):
        kinds[patches[index].tissue, patches[index].classes].append(patches[index])
    return dict(sorted(kinds.items()))


def _groups(tissue: str, classes: Sequence[str]) -> list[tuple[str, ...]]:
    return [(tissue,), *(("", name) for name in classes), *((tissue, name) for name in classes)]


def _shuffled(fold: int, indices: Iterable[int]) -> list[int]:
    return sorted(indices, key=lambda index: hashlib.sha256(f"{fold}/{index}".encode()).digest())


def _digest(fold: Fold, patches: Iterable[Patch]) -> str:
    digest = hashlib.sha256()
    for patch in patches:
        digest.update(fold.image(patch.index).tobytes())
    return digest.hexdigest()
