"""Where a bundle's files lie: in a folder, or uncompressed in a zip. Reading writes nothing and follows no link out."""

import stat
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Protocol

from unetsharp_engines.errors import InputError
from unetsharp_engines.files import replacing

__all__ = ["Archive", "build_again", "open_archive", "stays_inside", "write_zip"]

_MOST_MEMBERS = 1000
"""Of a zip: a bundle has a handful of files."""

_ENCRYPTED = 0x1
"""Bit of a zip member's flags."""


class Archive(Protocol):
    """Files by their path in the bundle, relative and with forward slashes."""

    def names(self) -> set[str]:
        """Paths of all files that are there."""

    def size(self, path: str) -> int:
        """Bytes of a file. Raises InputError where it is missing, or a link that leads out of the bundle."""

    def read(self, path: str, most: int) -> bytes:
        """The first ``most`` bytes of a file. Raises InputError as `size` does, and where reading fails."""


def open_archive(root: Path) -> Archive:
    """The archive at ``root``, a folder or a zip. Raises InputError for what is neither, or a zip not to be trusted."""
    if root.is_dir():
        return _Folder(root)
    if not root.is_file():
        raise InputError(f"{root}: no such bundle; make one: unetsharp build-engine FILE.onnx -o {root}")
    return _Zip(root)


class _Folder:
    """A bundle as a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> set[str]:
        return {path.relative_to(self._root).as_posix() for path in self._root.rglob("*") if not path.is_dir()}

    def size(self, path: str) -> int:
        with _as_input_error(self._root / path, self._root):
            return self._checked(path).stat().st_size

    def read(self, path: str, most: int) -> bytes:
        with _as_input_error(self._root / path, self._root), self._checked(path).open("rb") as file:
            return file.read(most)

    def _checked(self, path: str) -> Path:
        file = self._root / path
        if not file.is_file():
            raise InputError(f"{file}: missing from the bundle; {build_again(self._root)}")
        if not file.resolve().is_relative_to(self._root.resolve()):
            raise InputError(f"{file}: a link that leads out of the bundle; {build_again(self._root)}")
        return file


class _Zip:
    """A bundle as a zip whose members are stored as they are, so that a few kilobytes cannot become gigabytes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        with _as_input_error(root, root), zipfile.ZipFile(root) as opened:
            self._members = _checked_members(opened.infolist(), root)

    def names(self) -> set[str]:
        return set(self._members)

    def size(self, path: str) -> int:
        return self._member(path).file_size

    def read(self, path: str, most: int) -> bytes:
        member = self._member(path)
        with (
            _as_input_error(self._root / path, self._root),
            zipfile.ZipFile(self._root) as opened,
            opened.open(member) as file,
        ):
            return file.read(most)

    def _member(self, path: str) -> zipfile.ZipInfo:
        if path not in self._members:
            raise InputError(f"{self._root}: {_without(path, self._members, self._root)}")
        return self._members[path]


def _checked_members(members: list[zipfile.ZipInfo], root: Path) -> dict[str, zipfile.ZipInfo]:
    """Files by name; folders have no entry. Raises InputError for a zip that no bundle's author would make."""
    files: dict[str, zipfile.ZipInfo] = {}
    if len(members) > _MOST_MEMBERS:
        raise InputError(f"{root}: a zip of {len(members)} files, no bundle; {build_again(root)}")
    for member in members:
        if reason := _objection(member) or (
            "is in it twice; copy the bundle again" if member.filename in files else ""
        ):
            raise InputError(f"{root}: {member.filename!r:.80} {reason}")
        if not member.is_dir():
            files[member.filename] = member
    claimed, there = sum(member.file_size for member in files.values()), root.stat().st_size
    if claimed > there:
        raise InputError(f"{root}: {there} bytes, its members claim {claimed}; {build_again(root)}")
    return files


def _objection(member: zipfile.ZipInfo) -> str:
    """Why a member is refused, or nothing."""
    if member.filename != member.orig_filename or not stays_inside(member.filename):
        return "is a name that leads out of the bundle; do not unpack it"
    if member.flag_bits & _ENCRYPTED:
        return "is encrypted; pack the bundle without a password"
    if member.compress_type != zipfile.ZIP_STORED:
        return "is compressed; pack the bundle with `zip -0`, which stores files as they are"
    if member.compress_size != member.file_size:
        return f"is said to be {member.compress_size} and {member.file_size} bytes long; copy the bundle again"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "is a link; pack the file itself"
    return ""


def write_zip(root: Path, files: Mapping[str, bytes]) -> None:
    """Write ``files`` to a zip at ``root``, whole or not at all; equal files are equal bytes. Raises OSError."""
    with replacing(root) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as opened:
        for path, content in files.items():
            member = zipfile.ZipInfo(path)  # dated 1980
            member.external_attr = 0o644 << 16
            opened.writestr(member, content)


def stays_inside(path: str) -> bool:
    """Whether ``path`` is relative, has forward slashes, and does not lead out of where it starts."""
    pure = PurePosixPath(path)
    plain = not any(character in path for character in "\\:\0")  # Windows separators and drives, C's end of string
    return plain and bool(pure.parts) and not pure.is_absolute() and ".." not in pure.parts


def build_again(root: Path) -> str:
    """What helps against a bundle that is damaged."""
    return f"copy it again, or delete it and build it: unetsharp build-engine FILE.onnx -o {root}"


def _without(path: str, members: Iterable[str], root: Path) -> str:
    """What to say of a zip that lacks ``path``."""
    if any(name.endswith("/data.pkl") for name in members):
        return "a PyTorch checkpoint, which runs code when it is loaded; give weights as .safetensors"
    how = f"zip the files in the bundle's folder, not the folder: zip -0 -r ../{root.name} ."
    return f"a zip without {path} at its top; {how}"


@contextmanager
def _as_input_error(path: Path, root: Path) -> Iterator[None]:
    """Turn what reading a damaged or forbidden file raises into one line."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error) as error:
        raise InputError(f"{path}: not a whole zip ({error}); {build_again(root)}") from error
