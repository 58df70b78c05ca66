"""Finding PanNuke's folds in the folder layouts people have.

Warwick releases ``Fold k/images/foldk/{images,types}.npy`` and ``Fold k/masks/foldk/masks.npy``. Found as well: other
spellings (``fold1``, ``Fold_1``), flat folders (``Fold 1/images.npy``), one level more or less, the fold's own folder
given as the root, ``.npz`` for each array, and one ``.npz`` a fold with members ``images``, ``masks`` and ``types``.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from unetsharp_engines.errors import InputError
from unetsharp_trainer.data.arrays import Source, members

__all__ = ["EXPECTED", "FoldFiles", "complete_fold", "find_arrays", "find_folds"]

EXPECTED = "Fold 1/images/fold1/{images,types}.npy and Fold 1/masks/fold1/masks.npy"
"""The released layout, as error messages show it."""

_ROLES = ("images", "masks", "types", "ignore")
_DEPTH = 5
"""Folders below the root that are looked into: ``fold_1/Fold 1/images/fold1/`` is four deep."""
_FOLD = re.compile(r"fold[\s_-]*(\d+)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class FoldFiles:
    """Where one fold's arrays lie."""

    number: int
    images: Source
    masks: Source
    types: Source
    ignore: Source | None = None
    """bool [N,256,256], True on nuclei of unknown class; not part of PanNuke."""

    @property
    def paths(self) -> list[Path]:
        """The files, each once."""
        sources = (self.images, self.masks, self.types, self.ignore)
        return list(dict.fromkeys(source.path for source in sources if source is not None))


def find_folds(root: Path) -> dict[int, FoldFiles]:
    """Files of every fold below ``root``, by fold number, in rising order.

    Raises InputError where ``root`` holds no fold, where a fold lacks an array, or where an array is there twice.
    """
    return {number: complete_fold(number, arrays) for number, arrays in find_arrays(root).items()}


def find_arrays(root: Path) -> dict[int, dict[str, Source]]:
    """What there is of each fold below ``root``: role (images, masks, types, ignore) to source, by fold number.

    Raises InputError where ``root`` holds nothing of any fold, or an array is there twice.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder that holds {EXPECTED}")
    found: dict[int, dict[str, Source]] = {}
    for path in _array_files(root):
        number = _fold_number(path, root)
        if number is not None:
            for role, source in _arrays_of(path):
                _add(found.setdefault(number, {}), role, source)
    if not found:
        raise InputError(f"{root}: no PanNuke fold; looked for {EXPECTED}, saw {_listing(root)}")
    return dict(sorted(found.items()))


def complete_fold(number: int, arrays: dict[str, Source]) -> FoldFiles:
    """The files of fold ``number`` from what was found of it. Raises InputError where images, masks or types lack."""
    missing = [role for role in ("images", "masks", "types") if role not in arrays]
    if missing:
        seen = ", ".join(map(str, arrays.values()))
        looked = " and ".join(f"{role}.npy" for role in missing)
        raise InputError(f"fold {number}: no {looked}; saw {seen}; the released layout is {EXPECTED}")
    return FoldFiles(number=number, **arrays)


def _array_files(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root, followlinks=True):  # data sets often lie on another disk
        deep = len(Path(folder).relative_to(root).parts) >= _DEPTH
        subfolders[:] = [] if deep else sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if name.endswith((".npy", ".npz")))


def _fold_number(path: Path, root: Path) -> int | None:
    """The fold a file belongs to: the last "fold k" in its path below the root, else in the root's own name."""
    numbers = _FOLD.findall(str(path.relative_to(root))) or _FOLD.findall(root.resolve().name)
    return int(numbers[-1]) if numbers else None


def _arrays_of(path: Path) -> list[tuple[str, Source]]:
    role = path.stem.lower()
    if path.suffix == ".npy":
        return [(role, Source(path=path))] if role in _ROLES else []
    names = members(path)
    if role in _ROLES and len(names) == 1:
        return [(role, Source(path=path, member=names[0]))]
    return [(name.lower(), Source(path=path, member=name)) for name in names if name.lower() in _ROLES]


def _add(fold: dict[str, Source], role: str, source: Source) -> None:
    if role in fold:
        raise InputError(f"{fold[role]} and {source} are both {role} of one fold; keep one of them")
    fold[role] = source


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return shown or "an empty folder"
