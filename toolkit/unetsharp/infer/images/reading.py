"""Reading any picture file: the format is told by the first bytes, never by the name."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from unetsharp.infer.images import npy, raster, tiff
from unetsharp.infer.images.decoding import decoding
from unetsharp.infer.images.openslide_slide import OpenSlideSlide
from unetsharp.infer.images.picture import Header, Picture
from unetsharp.infer.images.slide import Slide
from unetsharp.infer.images.tiff_slide import open_tiff_slide
from unetsharp_engines.errors import InputError

__all__ = ["open_slide", "probe", "read_picture"]

SCANNER_SUFFIXES = frozenset(
    {".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".dcm", ".svslide", ".czi", ".isyntax", ".zvi"}
)
"""Scanners' own formats, known by name: several are TIFF inside. OpenSlide reads most, and says so of the others."""


class _Format(NamedTuple):
    magic: tuple[bytes, ...]
    probe: Callable[[Path], Header]
    read: Callable[[Path], Picture]


_TIFF = _Format((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), tiff.probe, tiff.read)
_FORMATS = (
    _Format((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"), raster.probe, raster.read),
    _TIFF,
    _Format((b"\x93NUMPY",), npy.probe, npy.read),
)


def read_picture(path: Path) -> Picture:
    """Decode a PNG, JPEG, TIFF or npy file. InputError, one line that names the file, for whatever cannot be read."""
    with decoding(path):
        return _format_of(path).read(path)


def probe(path: Path) -> Header:
    """Size and resolution of a picture without decoding it. InputError as in `read_picture`."""
    with decoding(path):
        return _format_of(path).probe(path)


def open_slide(path: Path) -> Slide | None:
    """Open a file whose regions can be read: a TIFF in tiles, a scanner's format; None for what is read whole.

    InputError as in `read_picture`; MissingCapabilityError where a scanner's format needs OpenSlide.
    """
    with decoding(path):
        if path.suffix.lower() in SCANNER_SUFFIXES:
            return OpenSlideSlide(path)
        return open_tiff_slide(path) if _format_of(path) is _TIFF else None


def _format_of(path: Path) -> _Format:
    with path.open("rb") as file:
        start = file.read(8)
    if not start:
        raise InputError("it is empty (0 bytes)")
    for candidate in _FORMATS:
        if start.startswith(candidate.magic):
            return candidate
    raise InputError(f"not a PNG, JPEG, TIFF or npy picture (it starts with {start!r}); save it as one of these")
