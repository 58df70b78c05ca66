"""Reading any picture file: the format is told by the first bytes, never by the name."""

import struct
import tokenize
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from tifffile import TiffFileError

from unetsharp.infer.images import npy, raster, tiff
from unetsharp.infer.images.picture import Header, Picture
from unetsharp_engines.errors import InputError

__all__ = ["probe", "read_picture"]

SLIDE_SUFFIXES = frozenset(
    {".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".czi", ".dcm", ".svslide", ".isyntax", ".zvi"}
)
"""Whole-slide formats, known by name: several are TIFF inside."""

_DECODER_ERRORS = (
    OSError, ValueError, SyntaxError, RuntimeError, EOFError, LookupError, TypeError, ArithmeticError,
    struct.error, tokenize.TokenError, zlib.error, TiffFileError,
)  # fmt: skip
"""What Pillow, tifffile, imagecodecs and numpy raise on damaged files, by their own account and by fuzzing them."""


class _Format(NamedTuple):
    magic: tuple[bytes, ...]
    probe: Callable[[Path], Header]
    read: Callable[[Path], Picture]


_FORMATS = (
    _Format((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"), raster.probe, raster.read),
    _Format((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), tiff.probe, tiff.read),
    _Format((b"\x93NUMPY",), npy.probe, npy.read),
)

_T = TypeVar("_T")


def read_picture(path: Path) -> Picture:
    """Decode a PNG, JPEG, TIFF or npy file. InputError, one line that names the file, for whatever cannot be read."""
    return _named(path, lambda: _format_of(path).read(path))


def probe(path: Path) -> Header:
    """Size and resolution of a picture without decoding it. InputError as in `read_picture`."""
    return _named(path, lambda: _format_of(path).probe(path))


def _named(path: Path, work: Callable[[], _T]) -> _T:
    try:
        with warnings.catch_warnings():  # of odd metadata; what makes the pixels doubtful raises
            warnings.simplefilter("ignore")
            return work()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except MemoryError as error:
        raise InputError(f"{path}: too large for this machine's memory") from error
    except _DECODER_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: damaged or cut short ({reason}); save or copy it again") from error


def _format_of(path: Path) -> _Format:
    if path.suffix.lower() in SLIDE_SUFFIXES:
        raise InputError(
            f"whole-slide files ({path.suffix}) are not read yet; export the region as PNG or TIFF and give its --mpp"
        )
    with path.open("rb") as file:
        start = file.read(8)
    if not start:
        raise InputError("it is empty (0 bytes)")
    for candidate in _FORMATS:
        if start.startswith(candidate.magic):
            return candidate
    raise InputError(f"not a PNG, JPEG, TIFF or npy picture (it starts with {start!r})")
