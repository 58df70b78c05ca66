"""Which files a run works on, and what each one's outputs are called."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from unetsharp_engines.errors import InputError

__all__ = ["InputFile", "list_inputs"]

_RESERVED = ("counts",)
"""Names of a run's own tables: ``counts.csv`` must not be a picture's nuclei."""


@dataclass(frozen=True)
class InputFile:
    """One file to segment."""

    path: Path
    name: str
    """Outputs are called NAME.geojson, NAME_overlay.png and so on; unique in a run, whatever the case of letters."""


def list_inputs(paths: Sequence[Path]) -> list[InputFile]:
    """The files that ``paths`` (files and folders) stand for, in order, each once.

    A folder stands for the visible files directly in it, sorted by name; its subfolders are not entered. Files with
    equal stems get the names ``x``, ``x-2``, ``x-3``. Raises InputError for a path that does not exist and for a
    folder without visible files: both are slips of the command line, told before any work starts.
    """
    files = dict.fromkeys(file for path in paths for file in _files_of(path))
    return [InputFile(file, name) for file, name in zip(files, _unique([f.stem for f in files]), strict=True)]


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder")
    files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
    if not files:
        raise InputError(
            f"{path}: holds no files; give a folder with slides or PNG, JPEG, TIFF or npy pictures directly in it"
        )
    return files


def _unique(stems: Iterable[str]) -> list[str]:
    taken = set(_RESERVED)
    names = []
    for stem in stems:
        name, number = stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.lower())
        names.append(name)
    return names
