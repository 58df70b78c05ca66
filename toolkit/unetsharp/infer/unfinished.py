"""What is known of a slide so far, on disk: field by field, so that a stopped run goes on where it was."""

import shutil
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unetsharp.infer.box import Box
from unetsharp.infer.nuclei import Nucleus
from unetsharp_engines.contract import CLASSES
from unetsharp_engines.errors import InputError
from unetsharp_engines.files import replacing

__all__ = ["StoredNuclei", "Unfinished"]

_FINGERPRINT, _CLASSES, _FIELDS = "fingerprint", "classes.npy", "field-*.npz"
_WRITTEN = (_FIELDS, _CLASSES, f".{_FIELDS}", f".{_FINGERPRINT}-*")
"""What may lie in the folder beside the fingerprint; with a dot what `replacing` was killed at."""


class Unfinished:
    """A folder that holds what the fields of one slide gave, until its outputs are written."""

    def __init__(self, folder: Path, *, fingerprint: str, classes_of: tuple[int, int] | None, resume: bool) -> None:
        """Open ``folder``, made if need be; ``classes_of`` is the slide's (height, width), if classes are to be kept.

        What it holds goes, unless the user says ``resume`` and it is of this ``fingerprint`` (slide, model, settings).
        InputError if the disk may be too small for the classes.
        """
        self._folder = folder
        self.keeps_classes = classes_of is not None
        if not (resume and self._is_of(fingerprint)):
            self.remove()
            self._begin(fingerprint, classes_of)

    @property
    def classes(self) -> npt.NDArray[np.uint8] | None:
        """Labels of the slide's pixels, uint8 [H, W], 0 where no field was stored: a mapped file. None if not kept."""
        return np.load(self._folder / _CLASSES, mmap_mode="r") if self.keeps_classes else None

    @property
    def nuclei(self) -> "StoredNuclei":
        """The nuclei of the fields stored so far, in the fields' order."""
        return StoredNuclei(sorted(self._folder.glob(_FIELDS)))

    def has(self, field: int) -> bool:
        """Whether this field is stored, as a whole: a computer that lost its power may leave an empty file."""
        return zipfile.is_zipfile(self._file(field))

    def store(self, field: int, nuclei: Sequence[Nucleus], labels: npt.NDArray[np.uint8] | None, at: Box) -> None:
        """Keep what a field gave: its nuclei, and the labels of the slide's pixels ``at``; None is background alone."""
        if labels is not None and self.keeps_classes:  # else the file keeps a hole there
            classes = np.load(self._folder / _CLASSES, mmap_mode="r+")  # anew each time: what is mapped takes memory
            classes[at.within(Box(0, 0, *classes.shape))] = labels
            classes.flush()
        with replacing(self._file(field)) as temporary:
            np.savez(temporary, **_arrays(nuclei))

    def remove(self) -> None:
        """Remove what this class wrote, and the folder unless others left something there.

        The fingerprint goes first: a stop in between leaves what does not count.
        """
        (self._folder / _FINGERPRINT).unlink(missing_ok=True)
        for path in (path for pattern in _WRITTEN for path in self._folder.glob(pattern)):
            path.unlink(missing_ok=True)
        if self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()

    def _begin(self, fingerprint: str, classes_of: tuple[int, int] | None) -> None:
        if classes_of is not None:
            _check_space(self._folder.parent, classes_of)
            self._folder.mkdir(exist_ok=True)
            np.lib.format.open_memmap(self._folder / _CLASSES, mode="w+", dtype=np.uint8, shape=classes_of)
        with replacing(self._folder / _FINGERPRINT) as temporary:  # last: with it the folder counts
            temporary.write_text(fingerprint, encoding="ascii")

    def _file(self, field: int) -> Path:
        return self._folder / _FIELDS.replace("*", f"{field:06}")

    def _is_of(self, fingerprint: str) -> bool:
        path = self._folder / _FINGERPRINT
        return path.is_file() and path.read_text(encoding="ascii") == fingerprint


def _check_space(folder: Path, size: tuple[int, int]) -> None:
    """What is mapped and does not fit on the disk ends the program, without a word, when it is written."""
    needed, free = size[0] * size[1], shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"the class of every pixel takes up to {needed / 1e9:.1f} GB, and {folder} is on a disk with "
            f"{free / 1e9:.1f} GB left; --formats geojson,csv,overlay does without"
        )


class StoredNuclei(Iterable[Nucleus]):
    """Nuclei in files of arrays, one file's in memory at a time."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files

    def __iter__(self) -> Iterator[Nucleus]:
        for path in self._files:
            with np.load(path, allow_pickle=False) as arrays:
                yield from _nuclei(dict(arrays))


def _arrays(nuclei: Sequence[Nucleus]) -> dict[str, Any]:
    return {
        "channel": np.array([n.tissue_class.channel for n in nuclei], np.uint8),
        "probability": np.array([n.probability for n in nuclei], np.float64),
        "centroid": np.array([n.centroid for n in nuclei], np.float64).reshape(-1, 2),
        "area_um2": np.array([n.area_um2 for n in nuclei], np.float64),
        "on_border": np.array([n.on_border for n in nuclei], np.bool_),
        "end": np.cumsum([len(n.polygon) for n in nuclei], dtype=np.int64),
        "points": np.concatenate([np.empty((0, 2)), *(n.polygon for n in nuclei)]),
    }


def _nuclei(arrays: dict[str, npt.NDArray[np.generic]]) -> Iterator[Nucleus]:
    polygons = np.split(arrays["points"], arrays["end"])[:-1]  # behind the last end there is nothing
    names = ("channel", "probability", "centroid", "area_um2", "on_border")
    for polygon, *values in zip(polygons, *(arrays[name].tolist() for name in names), strict=True):
        channel, probability, (x, y), area, on_border = values
        yield Nucleus(CLASSES[channel], probability, np.asarray(polygon, np.float64), (x, y), area, on_border)
