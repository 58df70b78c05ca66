"""Arrays on disk, opened without reading them: ``.npy`` files, and members of ``.npz``, stored or compressed."""

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from unetsharp_engines.errors import InputError

__all__ = ["PatchArray", "Source", "StreamedArray", "members", "open_array"]

_LOCAL_HEADER = 30
"""Bytes of a zip local file header before the name; its last two little-endian uint16 are the lengths that follow."""


class PatchArray(Protocol):
    """What a memory map and a `StreamedArray` share: a shape, a dtype, and rows that are read when asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def dtype(self) -> np.dtype[Any]: ...  # noqa: D102

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> npt.NDArray[Any]: ...


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where an array lies: a ``.npy`` file, or a member of an ``.npz``."""

    path: Path
    member: str | None = None
    """Name inside the ``.npz``, without its ``.npy``; None for a ``.npy`` file."""

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path} [{self.member}]"


@dataclass(frozen=True, kw_only=True)
class _Header:
    """What stands at the head of a ``.npy`` stream."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    length: int
    """Bytes of the header itself."""


class StreamedArray:
    """Rows of a compressed ``.npz`` member, inflated one at a time: little memory, fast only in rising order.

    A step backwards inflates from the start again.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._open()
        if self._header.fortran:
            raise InputError(f"{source}: compressed and in Fortran order; {_unpacking(source)}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, patches first."""
        return self._header.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        return self._header.dtype

    @property
    def advice(self) -> str:
        """A line on how to make it fast."""
        return f"{self._source.path}: compressed, so it can only be read in order; {_unpacking(self._source)}"

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int, /) -> npt.NDArray[Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self._pid != os.getpid():  # a forked worker must not move its parent's file position
            self._open()
        row = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        with _readable(self._source):
            self._stream.seek(self._header.length + index * row)
            data = self._stream.read(row)
            return np.frombuffer(data, self.dtype).reshape(self.shape[1:])

    def _open(self) -> None:
        self._pid = os.getpid()
        with zipfile.ZipFile(self._source.path) as archive:  # the open member keeps the file open
            self._stream = archive.open(f"{self._source.member}.npy")
        self._header = _read_header(self._stream)


def members(path: Path) -> list[str]:
    """Names of the arrays in an ``.npz``, without ``.npy``. Raises InputError where ``path`` is no whole zip file."""
    with _readable(Source(path=path)), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def open_array(source: Source) -> PatchArray:
    """Open an array without reading it: a read-only memory map, or a `StreamedArray` where it is compressed.

    Raises InputError where the file is cut short, is no array, or holds pickled Python objects (never unpickled).
    """
    with _readable(source):
        if source.member is None:
            with source.path.open("rb") as file:
                return _map(source, _read_header(file), start=0)
        with zipfile.ZipFile(source.path) as archive:
            entry = archive.getinfo(f"{source.member}.npy")
        if entry.compress_type != zipfile.ZIP_STORED:
            return StreamedArray(source)
        return _map_stored(source, entry)


def _map_stored(source: Source, entry: zipfile.ZipInfo) -> PatchArray:
    with source.path.open("rb") as file:
        file.seek(entry.header_offset)
        local = file.read(_LOCAL_HEADER)
        lengths = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
        start = entry.header_offset + _LOCAL_HEADER + lengths
        file.seek(start)
        return _map(source, _read_header(file), start)


def _map(source: Source, header: _Header, start: int) -> PatchArray:
    order = "F" if header.fortran else "C"
    offset = start + header.length
    needed = offset + int(np.prod(header.shape)) * header.dtype.itemsize
    seen = source.path.stat().st_size
    if seen < needed:
        raise InputError(f"{source}: cut short, {seen:,} of {needed:,} bytes; download or unpack it again")
    return np.memmap(source.path, header.dtype, "r", offset, header.shape, order)  # type: ignore[call-overload, no-any-return]


def _read_header(stream: IO[bytes]) -> _Header:
    start = stream.tell()
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise InputError(
            f"{stream.name}: holds pickled Python objects, which are never run; save it with a plain dtype"
        )
    return _Header(shape=shape, fortran=fortran, dtype=dtype, length=stream.tell() - start)


@contextmanager
def _readable(source: Source) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{source}: cannot be read as a NumPy array ({error}); download or unpack it again") from error


def _unpacking(source: Source) -> str:
    folder = source.path.with_suffix("")
    return f"unpack it, then move it away: unzip '{source.path}' -d '{folder}'"
