"""What each patch showed, kept on disk until the report is written, so that a run that was stopped goes on.

A folder holds one file a patch, named by the hash of image and truth; the folder is named by that of the networks and
what runs them. So nothing is taken up that would come out otherwise today, and a run on more patches takes up those of
a run on fewer. A file begins with the hash of the rest: a disk that damages one is told of, and never believed.
"""

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unetsharp.validate.tally import PairTally, Patch, Shown, StepTally
from unetsharp_engines.errors import InputError
from unetsharp_engines.files import read_sealed, write_sealed

__all__ = ["remembered"]

_TALLIES = {"said": StepTally, "against_reference": PairTally, "against_previous": PairTally}
"""Fields of `Shown` that are tallies themselves."""


def remembered(look: Callable[[Patch], Shown], key: Sequence[object], root: Path) -> Callable[[Patch], Shown]:
    """``look``, which keeps in ``root`` what it shows and takes from there what an earlier run with ``key`` kept.

    ``key``, JSON, is all that decides the result beside the patch. What other keys left in ``root`` is removed.
    Raises InputError for a file there that cannot be read or written.
    """
    folder = root / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    for other in root.iterdir() if root.is_dir() else ():
        if other.is_dir() and other != folder:
            shutil.rmtree(other)

    def look_once(patch: Patch) -> Shown:
        path = folder / f"{patch.sha256}.kept"
        if path.is_file():
            return _read(path)
        shown = look(patch)
        _write(path, shown)
        return shown

    return look_once


def _write(path: Path, shown: Shown) -> None:
    tallies = {f"{part}.{name}": array for part in _TALLIES for name, array in vars(getattr(shown, part)).items()}
    packed = io.BytesIO()
    np.savez_compressed(packed, seconds=shown.seconds, extremes=shown.extremes, **tallies)
    try:
        write_sealed(path, packed.getvalue())
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be written to ({error.strerror}); name another --report") from error


def _read(path: Path) -> Shown:
    try:
        packed = read_sealed(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); delete {path.parent}") from error
    if packed is None:
        raise InputError(f"{path}: not what an earlier run kept (its hash does not fit); delete {path.parent}")
    with np.load(io.BytesIO(packed), allow_pickle=False) as kept:
        arrays = dict(kept)
    return Shown(
        seconds=arrays.pop("seconds"),
        extremes=arrays.pop("extremes"),
        **{part: _tally(kind, part, arrays) for part, kind in _TALLIES.items()},
    )


def _tally(kind: type, part: str, arrays: dict[str, Any]) -> Any:
    start = f"{part}."
    return kind(**{name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)})
