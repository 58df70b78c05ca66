"""A bundle: one folder or one zip with engines, the ONNX they came from, and a manifest with the hash of each file.

Nothing in a bundle is believed before it is checked: paths, sizes and the manifest's every field when it is opened, the
SHA-256 of a file when it is read, and an engine's maker (`unetsharp.build.trust`) before its bytes are handed out. The
bytes that were hashed are the bytes that are handed out, so nothing can change in between.
"""

import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from unetsharp.build.archive import Archive, build_again, open_archive, write_zip
from unetsharp.build.manifest import MAX_BYTES, EngineEntry, FileEntry, Manifest, parse_manifest
from unetsharp.build.trust import is_own
from unetsharp.model_files import ENGINE_MAGICS, MANIFEST
from unetsharp_engines.errors import InputError

__all__ = ["Bundle", "check_replaceable", "file_entry", "open_bundle", "problems_of", "with_engine", "write_bundle"]


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle whose manifest has been read and whose files are there, of the sizes it says."""

    root: Path
    """The folder or zip."""
    manifest: Manifest
    archive: Archive = field(repr=False, compare=False)
    trusts_foreign: bool = False
    """Whether the user said ``--trust``."""

    def read_onnx(self) -> bytes:
        """The ONNX's bytes, once their hash fits. Raises InputError where it does not."""
        return _read_verified(self, self.manifest.onnx)

    def read_inspected(self, engine: EngineEntry) -> bytes | None:
        """What TensorRT said of an engine's layers, JSON, once its hash fits; None where the bundle has none.

        Raises InputError where it does not fit. It is data, and needs no trust.
        """
        return None if engine.inspected is None else _read_verified(self, engine.inspected)

    def is_trusted(self, engine: EngineEntry) -> bool:
        """Whether `read_engine` gives ``engine``: this user built it, or said ``--trust``."""
        return self.trusts_foreign or is_own(engine, self.manifest.onnx.sha256)

    def check_trusted(self, engine: EngineEntry) -> None:
        """Raise InputError unless ``engine`` is trusted."""
        if not self.is_trusted(engine):
            raise InputError(
                f"{self.root / engine.file.path}: an engine is code, and this one was not built by you here; --trust "
                "runs it if you trust who made it, --rebuild builds your own from the bundle's ONNX"
            )

    def read_engine(self, engine: EngineEntry) -> bytes:
        """An engine's bytes, to be run as they are.

        Raises InputError for an engine that is not trusted, whose hash does not fit, or that its first bytes show to
        belong to another runtime.
        """
        self.check_trusted(engine)
        content = _read_verified(self, engine.file)
        if ENGINE_MAGICS.get(content[:4], engine.runtime) != engine.runtime:
            belongs = ENGINE_MAGICS[content[:4]]
            raise InputError(
                f"{self.root / engine.file.path}: an engine for {belongs}, the manifest says {engine.runtime}; "
                f"{build_again(self.root)}"
            )
        return content


def open_bundle(root: Path, *, trust: bool = False) -> Bundle:
    """Read the bundle ``root``, a folder or a zip: paths and sizes are checked now, hashes when a file is read.

    ``trust`` is the user's word that engines that others built may run. Raises InputError in one line for what is no
    whole bundle.
    """
    archive = open_archive(root)
    bundle = Bundle(root=root, manifest=_read_manifest(root, archive), archive=archive, trusts_foreign=trust)
    for entry in bundle.manifest.files():
        _check_size(bundle, entry)
    return bundle


def problems_of(bundle: Bundle) -> list[str]:
    """One line for each file of ``bundle`` whose hash does not fit; none for a sound bundle."""
    problems = []
    for entry in bundle.manifest.files():
        try:
            _read_verified(bundle, entry)
        except InputError as error:
            problems.append(str(error))
    return problems


def write_bundle(root: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
    """Write a bundle to ``root``, a zip where its name ends so, whole or not at all; one that is there is replaced.

    ``files`` holds the bytes of every file that ``manifest`` lists, by its path. Raises InputError as
    `check_replaceable` does, and where the disk does not take it.
    """
    check_replaceable(root)
    text = json.dumps(manifest.to_dict(), indent=2) + "\n"
    content = {MANIFEST: text.encode(), **files}
    try:
        (write_zip if _is_zip_name(root) else _write_folder)(root, content)
    except OSError as error:
        raise InputError(f"{root}: cannot be written ({error.strerror}); name a place that can") from error
    return open_bundle(root)


def with_engine(bundle: Bundle, engine: EngineEntry, files: Mapping[str, bytes], *, precision: str) -> Bundle:
    """Write ``bundle`` again with one more engine; one for the same GPUs and library, or of its name, is replaced.

    ``files`` are the engine's, by path; ``precision`` is that of all the bundle's engines. Those that stay are neither
    run nor signed: what was foreign stays foreign. Raises InputError for a bundle with a damaged file, and as
    `write_bundle` does.
    """
    if bundle.manifest.onnx.path in files:  # as no bundle of ours, but one from elsewhere may call it
        raise InputError(f"{bundle.root}: its ONNX is called {bundle.manifest.onnx.path}; {build_again(bundle.root)}")
    replaced = {engine.slot, *files}
    kept = [e for e in bundle.manifest.engines if not {e.slot, *(file.path for file in e.files())} & replaced]
    manifest = dataclasses.replace(bundle.manifest, engines=(*kept, engine), precision=precision)
    stays = [entry for entry in manifest.files() if entry.path not in files]
    return write_bundle(bundle.root, manifest, {**{e.path: _read_verified(bundle, e) for e in stays}, **files})


def file_entry(path: str, content: bytes) -> FileEntry:
    """The manifest's entry for a file ``path`` of bytes ``content``."""
    return FileEntry(path=path, sha256=hashlib.sha256(content).hexdigest(), size=len(content))


def check_replaceable(root: Path) -> None:
    """Raise InputError unless a bundle may be written to ``root``: nothing is there, or nothing but a bundle."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir()) and not _is_zip_name(root)):
        return
    if root.is_dir() == _is_zip_name(root):
        kind, wanted = ("folder", "a zip's") if root.is_dir() else ("file", "a folder's")
        raise InputError(f"{root}: exists and is a {kind}, and that name is {wanted}; name a new one")
    archive = open_archive(root)
    if not ((root / MANIFEST).is_file() if root.is_dir() else MANIFEST in archive.names()):
        raise InputError(f"{root}: exists and is no bundle, so it stays as it is; name a new one")
    listed = {MANIFEST, *(entry.path for entry in _read_manifest(root, archive).files())}
    if foreign := sorted(archive.names() - listed):
        raise InputError(f"{root}: a bundle with a file of yours in it ({foreign[0]}); move it out, or name a new one")


def _is_zip_name(root: Path) -> bool:
    return root.suffix.lower() == ".zip"


def _read_manifest(root: Path, archive: Archive) -> Manifest:
    if (size := archive.size(MANIFEST)) > MAX_BYTES:
        raise InputError(f"{root / MANIFEST}: not a bundle's manifest ({size} bytes long); {build_again(root)}")
    return parse_manifest(archive.read(MANIFEST, MAX_BYTES), str(root / MANIFEST))


def _write_folder(root: Path, files: Mapping[str, bytes]) -> None:
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        for path, content in files.items():
            (new / path).parent.mkdir(parents=True, exist_ok=True)
            (new / path).write_bytes(content)
        _swap(new, root, Path(temporary) / "old")


def _swap(new: Path, root: Path, old: Path) -> None:
    """Put ``new`` in the place of ``root``. Where that fails, or Ctrl-C comes between, the old bundle is put back."""
    try:
        if root.exists():
            root.rename(old)
        new.rename(root)
    finally:
        if old.exists() and not root.exists():
            old.rename(root)
    shutil.rmtree(old, ignore_errors=True)


def _check_size(bundle: Bundle, entry: FileEntry) -> None:
    if (seen := bundle.archive.size(entry.path)) != entry.size:
        raise InputError(
            f"{bundle.root / entry.path}: {seen} bytes, the manifest says {entry.size}; {build_again(bundle.root)}"
        )


def _read_verified(bundle: Bundle, entry: FileEntry) -> bytes:
    _check_size(bundle, entry)
    content = bundle.archive.read(entry.path, entry.size)
    if (seen := hashlib.sha256(content).hexdigest()) != entry.sha256:
        hashes = f"its SHA-256 begins {seen[:12]}, the manifest says {entry.sha256[:12]}"
        raise InputError(f"{bundle.root / entry.path}: {hashes}; {build_again(bundle.root)}")
    return content
