"""A bundle: one folder with engines, the ONNX they came from, and a manifest with the hash of each file.

**An engine file is code.** TensorRT runs what is in it, with your rights. Hashes prove that a file is the one that the
bundle was written with, not that its author meant well: take bundles from people you would take a program from. An
engine whose hash does not fit its manifest is never handed to TensorRT.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unetsharp.build.manifest import EngineEntry, FileEntry, Manifest, read_manifest
from unetsharp.model_files import MANIFEST
from unetsharp_engines.errors import InputError

__all__ = ["Bundle", "check_replaceable", "file_entry", "open_bundle", "problems_of", "write_bundle"]


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle whose manifest has been read and whose files are there, of the sizes it says."""

    root: Path
    manifest: Manifest

    def read_onnx(self) -> bytes:
        """The ONNX's bytes, once their hash fits. Raises InputError where it does not."""
        return _read_verified(self.root, self.manifest.onnx)

    def read_engine(self, engine: EngineEntry) -> bytes:
        """An engine's bytes, once their hash fits: these very bytes are the ones to run. Raises InputError."""
        return _read_verified(self.root, engine.file)


def open_bundle(root: Path) -> Bundle:
    """Read the bundle in folder ``root``: paths and sizes are checked now, hashes when a file is read.

    Raises InputError in one line for what is no whole bundle.
    """
    bundle = Bundle(root=root, manifest=read_manifest(root / MANIFEST))
    for entry in bundle.manifest.files():
        _check_present(root, entry)
    return bundle


def problems_of(bundle: Bundle) -> list[str]:
    """One line for each file of ``bundle`` whose hash does not fit; none for a sound bundle."""
    problems = []
    for entry in bundle.manifest.files():
        try:
            _read_verified(bundle.root, entry)
        except InputError as error:
            problems.append(str(error))
    return problems


def write_bundle(root: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
    """Write a bundle to folder ``root``, whole or not at all; one that is there is replaced whole.

    ``files`` holds the bytes of every file that ``manifest`` lists, by its path. Raises InputError as
    `check_replaceable` does, and where the disk does not take it.
    """
    check_replaceable(root)
    try:
        _write(root, manifest, files)
    except OSError as error:
        raise InputError(f"{root}: cannot be written ({error.strerror}); name a folder that can") from error
    return open_bundle(root)


def _write(root: Path, manifest: Manifest, files: Mapping[str, bytes]) -> None:
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        for path, content in files.items():
            (new / path).write_bytes(content)
        (new / MANIFEST).write_text(json.dumps(manifest.to_dict(), indent=2) + "\n", encoding="utf-8")
        _swap(new, root, Path(temporary) / "old")


def file_entry(path: str, content: bytes) -> FileEntry:
    """The manifest's entry for a file ``path`` of bytes ``content``."""
    return FileEntry(path=path, sha256=hashlib.sha256(content).hexdigest(), size=len(content))


def check_replaceable(root: Path) -> None:
    """Raise InputError unless a bundle may be written to ``root``: nothing is there, or nothing but a bundle."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return
    if not (root / MANIFEST).is_file():
        raise InputError(f"{root}: exists and is no bundle, so it stays as it is; name a new folder")
    listed = {MANIFEST, *(entry.path for entry in read_manifest(root / MANIFEST).files())}
    present = {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}
    if foreign := sorted(present - listed):
        raise InputError(
            f"{root}: a bundle with a file of yours in it ({foreign[0]}); move it out, or name a new folder"
        )


def _swap(new: Path, root: Path, old: Path) -> None:
    """Put ``new`` in the place of ``root``. A rename that fails leaves the old bundle where it was."""
    if root.exists():
        root.rename(old)
    try:
        new.rename(root)
    except OSError:
        if old.exists():
            old.rename(root)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _check_present(root: Path, entry: FileEntry) -> None:
    path = root / entry.path
    if not path.is_file():
        raise InputError(f"{path}: missing, though the manifest lists it; {_again(root)}")
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{path}: a link that leads out of the bundle; {_again(root)}")
    if (seen := path.stat().st_size) != entry.size:
        raise InputError(f"{path}: {seen} bytes, the manifest says {entry.size}; {_again(root)}")


def _read_verified(root: Path, entry: FileEntry) -> bytes:
    _check_present(root, entry)
    content = (root / entry.path).read_bytes()
    if (seen := hashlib.sha256(content).hexdigest()) != entry.sha256:
        hashes = f"its SHA-256 begins {seen[:12]}, the manifest says {entry.sha256[:12]}"
        raise InputError(f"{root / entry.path}: {hashes}; {_again(root)}")
    return content


def _again(root: Path) -> str:
    return f"copy or build the bundle again: unetsharp build-engine FILE.onnx -o {root}"
