"""PanNuke (Gamper et al. 2020) as Warwick releases it, memory-mapped: images, class maps, instance maps, tissues."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unetsharp_engines.contract import BACKGROUND, CLASSES, NUCLEUS_CLASSES, TILE
from unetsharp_engines.errors import InputError
from unetsharp_trainer.data.arrays import PatchArray, Source, StreamedArray, open_array
from unetsharp_trainer.data.layout import FoldFiles, find_folds

__all__ = ["UNKNOWN", "Fold", "FoldPlan", "open_folds", "parse_folds"]

UNKNOWN = 255
"""Target value of pixels on a nucleus of unknown class: a nucleus, but no class to learn or to be judged by."""

_CHECK = "`unetsharp data check` lists all such patches"


class Fold:
    """One fold of PanNuke, read patch by patch from memory maps. Can be pickled: it reopens its files.

    ``images`` is [N,256,256,3] and ``masks`` [N,256,256,6] in the dtype of the files; ``tissues`` has N names;
    ``ignored`` is bool [N,256,256] or None; ``notes`` are lines of advice for the user.
    Raises InputError where an array has another shape or kind, or the lengths differ.
    """

    def __init__(self, files: FoldFiles) -> None:
        self.files = files
        self.number = files.number
        self.images = _open(files.images, (TILE, TILE, 3))
        self.masks = _open(files.masks, (TILE, TILE, len(CLASSES)))
        self.tissues = _read_tissues(files.types)
        self.ignored = None if files.ignore is None else _open(files.ignore, (TILE, TILE), kinds="b")
        self._require_equal_lengths()

    def __len__(self) -> int:
        return len(self.images)

    def __reduce__(self) -> tuple[Any, ...]:
        return Fold, (self.files,)

    @property
    def notes(self) -> list[str]:
        """What the user should know about how the files are stored, a line each."""
        arrays = (self.images, self.masks)
        return list(dict.fromkeys(array.advice for array in arrays if isinstance(array, StreamedArray)))

    def image(self, index: int) -> npt.NDArray[np.uint8]:
        """Patch ``index`` as RGB uint8 [256,256,3]; float levels are rounded.

        Raises InputError where a level is no number in 0 to 255.
        """
        levels = np.asarray(self.images[index])
        if levels.dtype == np.uint8:
            return np.array(levels, dtype=np.uint8)  # a copy: the map is read-only
        low, high = float(levels.min()), float(levels.max())
        if not 0 <= low <= high <= 255 or (levels.dtype.kind == "f" and 0 < high <= 1):  # NaN fails too
            raise InputError(
                f"{self.files.images}: patch {index} has levels {low:g} to {high:g}, not 0 to 255; {_CHECK}"
            )
        rounded: npt.NDArray[np.uint8] = np.rint(levels).astype(np.uint8)
        return rounded

    def target(self, index: int) -> npt.NDArray[np.uint8]:
        """Class map of patch ``index``, uint8 [256,256]: network channel 0 to 5, or `UNKNOWN`.

        Where classes overlap the later channel wins, as in PanNuke's official metric. Raises InputError for a mask
        whose values are no instance ids.
        """
        target = np.full((TILE, TILE), BACKGROUND.channel, dtype=np.uint8)
        ids = self._ids(index)
        for tissue_class in NUCLEUS_CLASSES:
            target[ids[..., tissue_class.channel] > 0] = tissue_class.channel
        if self.ignored is not None:
            target[self.ignored[index]] = UNKNOWN
        return target

    def instances(self, index: int) -> npt.NDArray[np.int32]:
        """Instance map of patch ``index``, int32 [256,256]: 0 background, nuclei 1 to n over all classes.

        Nuclei of one class come in the order of their ids, classes in channel order. Nuclei of unknown class are not
        in it: their pixels are `UNKNOWN` in `target`.
        """
        return self._labelled(index)[0]

    def instance_classes(self, index: int) -> npt.NDArray[np.uint8]:
        """Network channel of each nucleus of `instances`, uint8 [n]: element ``j`` is that of nucleus ``j + 1``."""
        return self._labelled(index)[1]

    def _labelled(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
        ids = self._ids(index)
        stride = int(ids.max()) + 1
        keys = np.zeros((TILE, TILE), dtype=np.int64)  # class and id in one number
        for channel in range(len(NUCLEUS_CLASSES)):
            np.copyto(keys, ids[..., channel] + channel * stride, where=ids[..., channel] > 0)
        nuclei = np.unique(keys[keys > 0])
        number = np.zeros(stride * len(NUCLEUS_CLASSES), dtype=np.int32)
        number[nuclei] = np.arange(1, len(nuclei) + 1)
        return number[keys], (nuclei // stride).astype(np.uint8)

    def _ids(self, index: int) -> npt.NDArray[np.int64]:
        """Instance ids by class, int64 [256,256,5]. Raises InputError where they are no whole numbers from 0 up."""
        values = np.asarray(self.masks[index])[..., : len(NUCLEUS_CLASSES)]
        low, high = float(values.min()), float(values.max())
        if not 0 <= low <= high < 2**31:  # NaN fails too
            raise InputError(f"{self.files.masks}: patch {index} has ids {low:g} to {high:g}, not 0 and up; {_CHECK}")
        ids = values.astype(np.int64)
        if values.dtype.kind == "f" and not np.array_equal(ids, values):
            raise InputError(f"{self.files.masks}: patch {index} has ids that are no whole numbers; {_CHECK}")
        return ids

    def _require_equal_lengths(self) -> None:
        arrays: dict[str, PatchArray | list[str]] = {"images": self.images, "masks": self.masks, "types": self.tissues}
        if self.ignored is not None:
            arrays["ignore"] = self.ignored
        if len({len(array) for array in arrays.values()}) > 1:
            seen = ", ".join(f"{len(array)} {role}" for role, array in arrays.items())
            raise InputError(f"fold {self.number}: lengths differ ({seen}); the arrays of a fold hold one row a patch")


def open_folds(root: Path) -> dict[int, Fold]:
    """Open every PanNuke fold below ``root``, by number. Nothing but headers and tissue names is read.

    Finds the released layout and the variants that `unetsharp_trainer.data.layout` lists. Raises InputError that says
    what was looked for and what was seen.
    """
    return {number: Fold(files) for number, files in find_folds(root).items()}


@dataclass(frozen=True, kw_only=True)
class FoldPlan:
    """Which folds do what. No fold is in two parts."""

    train: tuple[int, ...]
    valid: tuple[int, ...]
    test: tuple[int, ...]

    @property
    def all(self) -> tuple[int, ...]:
        """Every fold named, in the order train, valid, test."""
        return self.train + self.valid + self.test


def parse_folds(text: str) -> FoldPlan:
    """Read ``TRAIN,VALID,TEST``: ``1,2,3`` is the paper's, ``1+2,-,3`` joins folds 1 and 2 and validates on none.

    Raises InputError for text of another form, a fold in two parts, or no training fold.
    """
    parts = text.replace(" ", "").split(",")
    if len(parts) != 3 or not all(re.fullmatch(r"-|\d+(\+\d+)*", part) for part in parts):
        raise InputError(f"--folds '{text}' is not TRAIN,VALID,TEST; '1,2,3' is the paper's, '1+2,-,3' joins two folds")
    train, valid, test = (() if part == "-" else tuple(map(int, part.split("+"))) for part in parts)
    plan = FoldPlan(train=train, valid=valid, test=test)
    if len(set(plan.all)) != len(plan.all):
        raise InputError(f"--folds '{text}' uses a fold twice; give each to one part, as '1,2,3' or '1+2,-,3' does")
    if not train:
        raise InputError(f"--folds '{text}' trains on no fold; '1,-,-' is the least that does")
    return plan


def _open(source: Source, row: tuple[int, ...], kinds: str = "iuf") -> PatchArray:
    array = open_array(source)
    if array.shape[1:] != row or array.dtype.kind not in kinds:
        kind = "bool" if kinds == "b" else "numbers"
        raise InputError(
            f"{source}: is {array.dtype} {list(array.shape)}; PanNuke's is {kind} [N, {', '.join(map(str, row))}]"
        )
    return array


def _read_tissues(source: Source) -> list[str]:
    array = open_array(source)
    if array.dtype.kind not in "US" or len(array.shape) != 1:
        raise InputError(
            f"{source}: is {array.dtype} {list(array.shape)}; PanNuke's is one tissue name a patch, [N] text"
        )
    return [str(name) for name in np.array([array[index] for index in range(len(array))]).astype(np.str_)]
