"""The prepared cache: patches stain-normalized once, with targets and instances, as memory maps.

One folder a fold, ``fold1-<hash>``, the hash being of all that its content depends on: parameters, and the source
files' sizes, times and samples of their bytes. A fold is filled in chunks; each leaves a small JSON when its rows are
written, so that a killed run goes on where it was. The folder gets its name when it is complete.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from unetsharp_engines.contract import TILE
from unetsharp_engines.errors import InputError
from unetsharp_engines.files import replacing
from unetsharp_engines.stain import StainStatus, estimate
from unetsharp_trainer.data.layout import FoldFiles
from unetsharp_trainer.data.pannuke import Fold
from unetsharp_trainer.data.parallel import in_processes, usable_cores

__all__ = ["CACHE_NAME", "FlaggedTile", "PreparedFold", "StainScope", "prepare", "stain_normalized"]

StainScope = Literal["tile", "none"]
"""``tile``: Macenko by each patch's own stains, the paper's; ``none``: patches as they are."""

CACHE_NAME = ".unetsharp-cache"
"""Folder inside the data folder that prepared folds go to unless told otherwise."""

_FORMAT = 1
"""Raised when the content of a prepared folder changes meaning."""
_CHUNK = 32
"""Patches a chunk: 16 MB of results."""
_SAMPLES, _SAMPLE_BYTES = 16, 65536
_ARRAYS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "patches.npy": (np.uint8, (TILE, TILE, 3)),
    "targets.npy": (np.uint8, (TILE, TILE)),
    "instances.npy": (np.int32, (TILE, TILE)),
}


@dataclass(frozen=True, kw_only=True)
class FlaggedTile:
    """A patch whose stains could not be estimated; it was left as it is."""

    index: int
    tissue: str
    status: str
    """Value of the `StainStatus`, e.g. ``few-pixels``."""


class PreparedFold:
    """A fold ready to train on, as read-only memory maps. Can be pickled: it reopens its folder.

    ``images`` uint8 [N,256,256,3] RGB, stain-normalized; ``targets`` uint8 [N,256,256] as `Fold.target` gives them;
    ``instances`` int32 [N,256,256] as `Fold.instances` gives them; ``tissues`` N names; ``flagged`` the tiles that
    stain normalization left alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        facts = json.loads((folder / "prepared.json").read_text())
        self.number: int = facts["fold"]
        self.tissues: list[str] = facts["tissues"]
        flagged = json.loads((folder / "flagged.json").read_text())["tiles"]
        self.flagged = [FlaggedTile(**tile) for tile in flagged]
        self.images, self.targets, self.instances = (np.load(folder / name, mmap_mode="r") for name in _ARRAYS)

    def __len__(self) -> int:
        return len(self.images)

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedFold, (self.folder,)


def prepare(
    folds: Sequence[Fold],
    cache: Path,
    *,
    stain: StainScope = "tile",
    workers: int | None = None,
    advance: Callable[[int], object] = lambda patches: None,
) -> list[PreparedFold]:
    """Return the folds prepared, from ``cache`` where it holds them, else making them there.

    ``workers`` processes share the work; None is one a core that this process may use. ``advance`` is called with the
    number of patches just done (or found done). Processes that prepare the same fold wait for each other.
    Raises InputError where ``cache`` cannot be written or has too little room, or a patch cannot be read.
    """
    if stain not in get_args(StainScope):
        raise InputError(f"stain normalization '{stain}' is none of {', '.join(get_args(StainScope))}")
    return [_prepare_fold(fold, cache, stain, workers or usable_cores(), advance) for fold in folds]


def stain_normalized(image: npt.NDArray[np.uint8], stain: StainScope) -> tuple[npt.NDArray[np.uint8], StainStatus]:
    """Normalize uint8 [H,W,3] by its own stains; a flagged image, or any for ``none``, comes back as it is."""
    if stain == "none":
        return image, StainStatus.OK
    own = estimate(image)
    return (own.transform.apply(image) if own.status is StainStatus.OK else image), own.status


def _prepare_fold(
    fold: Fold, cache: Path, stain: StainScope, workers: int, advance: Callable[[int], object]
) -> PreparedFold:
    facts = _facts(fold, stain)
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache / f"fold{fold.number}-{key}"
    if not folder.exists():
        from filelock import FileLock

        _make_writable(cache)
        with FileLock(cache / f"{folder.name}.lock"):
            if not folder.exists():  # another process may have made it meanwhile
                _make(fold, folder, facts, stain, workers, advance)
                return PreparedFold(folder)
    advance(len(fold))
    return PreparedFold(folder)


def _make(
    fold: Fold, folder: Path, facts: dict[str, Any], stain: StainScope, workers: int, advance: Callable[[int], object]
) -> None:
    part = folder.with_name(f"{folder.name}.part")
    chunks = [
        _Chunk(part, fold.files, stain, start, min(start + _CHUNK, len(fold))) for start in range(0, len(fold), _CHUNK)
    ]
    missing = [chunk for chunk in chunks if not chunk.record.exists()]
    _require_room(part.parent, sum(len(chunk) for chunk in missing))
    _allocate(part, len(fold))
    advance(len(fold) - sum(len(chunk) for chunk in missing))
    for done in in_processes(_fill, missing, workers):
        advance(len(done))
    tiles = [tile for chunk in chunks for tile in json.loads(chunk.record.read_text())]
    _write_json(
        part / "flagged.json", {"fold": fold.number, "patches": len(fold), "flagged": len(tiles), "tiles": tiles}
    )
    _write_json(part / "prepared.json", {"fold": fold.number, "tissues": fold.tissues, **facts})
    part.rename(folder)
    shutil.rmtree(folder / "chunks")


@dataclass(frozen=True)
class _Chunk:
    """Patches ``start`` to ``stop`` of a fold on their way into ``part``."""

    part: Path
    files: FoldFiles
    stain: StainScope
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def record(self) -> Path:
        """The file that says these patches are written; it lists the flagged ones."""
        return self.part / "chunks" / f"{self.start:06d}.json"


_open_fold: dict[FoldFiles, Fold] = {}
"""The fold this process works on: kept open from chunk to chunk, which lets compressed files be read in one go."""


def _fill(chunk: _Chunk) -> _Chunk:
    if chunk.files not in _open_fold:
        _open_fold.clear()
        _open_fold[chunk.files] = Fold(chunk.files)
    fold = _open_fold[chunk.files]
    rows = [np.empty((len(chunk), *shape), dtype) for dtype, shape in _ARRAYS.values()]
    flagged = []
    for row, index in enumerate(range(chunk.start, chunk.stop)):
        normalized, status = stain_normalized(fold.image(index), chunk.stain)
        for array, value in zip(rows, (normalized, fold.target(index), fold.instances(index)), strict=True):
            array[row] = value
        if status is not StainStatus.OK:
            flagged.append(asdict(FlaggedTile(index=index, tissue=fold.tissues[index], status=status.value)))
    for name, array in zip(_ARRAYS, rows, strict=True):
        _write_rows(chunk.part / name, chunk.start, array)
    _write_json(chunk.record, flagged)
    return chunk


def _write_rows(path: Path, start: int, rows: npt.NDArray[Any]) -> None:
    """Write by file calls, not through a map, where a full disk would kill the process with SIGBUS."""
    offset = np.load(path, mmap_mode="r").offset
    with path.open("r+b") as file:
        file.seek(offset + start * rows[0].nbytes)
        file.write(rows.tobytes())


def _allocate(part: Path, patches: int) -> None:
    for name, (dtype, shape) in _ARRAYS.items():
        if not (part / name).exists():
            with replacing(part / name) as temporary:
                np.lib.format.open_memmap(temporary, "w+", dtype, (patches, *shape))


def _write_json(path: Path, content: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def _make_writable(cache: Path) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with replacing(cache / "writable"):
            pass
        (cache / "writable").unlink()
    except OSError as error:
        raise InputError(
            f"{cache}: no prepared patches can be written here ({error.strerror}); name another folder with --cache DIR"
        ) from error


def _require_room(cache: Path, patches: int) -> None:
    needed = patches * sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for dtype, shape in _ARRAYS.values())
    free = shutil.disk_usage(cache).free
    if free < needed:
        raise InputError(
            f"{cache}: {free / 1e9:.1f} GB free, the prepared patches take {needed / 1e9:.1f}; "
            "name a folder with more room with --cache DIR"
        )


def _facts(fold: Fold, stain: StainScope) -> dict[str, Any]:
    """All that a prepared fold's content depends on."""
    return {
        "format": _FORMAT,
        "stain": stain,
        "method": _method_fingerprint() if stain == "tile" else None,
        "sources": [_identity(path) for path in fold.files.paths],
    }


def _method_fingerprint() -> list[float]:
    """What the stain normalization makes of one fixed picture, so that a change of method makes new folders."""
    levels = np.random.default_rng(0).integers(40, 256, (64, 64, 3), dtype=np.uint8)
    transform = estimate(levels).transform
    return [float(value) for value in np.append(transform.matrix, transform.offset).round(6)]


def _identity(path: Path) -> dict[str, Any]:
    stat = path.stat()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for position in np.linspace(0, max(0, stat.st_size - _SAMPLE_BYTES), _SAMPLES, dtype=np.int64):
            file.seek(int(position))
            digest.update(file.read(_SAMPLE_BYTES))
    return {"name": path.name, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sample": digest.hexdigest()}
