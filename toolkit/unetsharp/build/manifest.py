"""``manifest.json``: what a bundle holds, for which machine, made how. Reading it trusts nothing it says."""

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from unetsharp_engines.errors import InputError
from unetsharp_engines.model_info import ModelInfo

__all__ = ["SCHEMA", "EngineEntry", "FileEntry", "Manifest", "read_manifest"]

SCHEMA = 1
"""Version of this layout. A reader takes its own version only: a bundle is built again in seconds to minutes."""

_MAX_BYTES = 1 << 20
"""A manifest is a few kilobytes; what is larger than this is none."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file of the bundle."""

    path: str
    """Relative to the bundle's folder, with forward slashes, never outside it."""
    sha256: str
    size: int
    """Bytes."""

    def __post_init__(self) -> None:
        """Raise ValueError unless the fields are what they should be."""
        _require(isinstance(self.path, str) and _stays_inside(self.path), f"path {self.path!r} leaves the bundle")
        _require(bool(_SHA256.fullmatch(self.sha256)), f"sha256 {self.sha256!r} is not 64 hex digits")
        _require(type(self.size) is int and self.size >= 0, f"size {self.size!r} is no number of bytes")


@dataclass(frozen=True, kw_only=True)
class EngineEntry:
    """An engine and where it fits."""

    file: FileEntry
    runtime: str
    """``tensorrt`` or ``tensorrt-rtx``."""
    version: str
    """Of the library that built it, e.g. ``1.7.1.116``; another version may refuse the engine."""
    cuda: str | None
    """CUDA that the library was made for."""
    targets: tuple[str, ...]
    """Compute capabilities that it runs on, e.g. ``sm86``."""
    platform: str
    """Operating system and architecture it was built on, e.g. ``linux-x86_64``."""
    profile: dict[str, tuple[int, ...]]
    """``min``, ``opt`` and ``max`` input shape [N, 3, H, W]."""
    options: dict[str, Any]
    """Builder options that were set, e.g. ``{"level": 3}``."""
    seconds: float
    """How long it took to build."""

    def __post_init__(self) -> None:
        """Raise ValueError unless the fields are what they should be."""
        texts = (self.runtime, self.version, self.platform, self.cuda or "")
        _require(all(isinstance(text, str) for text in texts), f"runtime, version, platform or cuda in {texts!r}")
        _require(isinstance(self.options, dict), f"options {self.options!r}")
        _require(all(isinstance(t, str) and t.startswith("sm") for t in self.targets), f"targets {self.targets!r}")
        _require(len(self.targets) > 0, "an engine without targets")
        shapes = [tuple(self.profile[name]) for name in ("min", "opt", "max")]
        _require(
            all(len(s) == 4 and all(type(n) is int and n > 0 for n in s) for s in shapes), "a profile of no shapes"
        )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that ``manifest.json`` says, but for its ``schema``."""

    created: str
    """Date and time, UTC, ISO 8601."""
    tool_version: str
    info: ModelInfo
    precision: str
    """Of the engines: ``fp32``, ``fp16``, ``int8``. Without engines, of the ONNX."""
    onnx: FileEntry
    """The ONNX as it was given, or quantized; an FP16 engine is made from its conversion
    (`unetsharp.export.precision`)."""
    engines: tuple[EngineEntry, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError unless the texts are texts."""
        texts = (self.created, self.tool_version, self.precision)
        _require(all(isinstance(text, str) for text in texts), f"created, tool_version or precision in {texts!r}")

    def files(self) -> tuple[FileEntry, ...]:
        """Every file of the bundle but the manifest."""
        return (self.onnx, *(engine.file for engine in self.engines))

    def to_dict(self) -> dict[str, Any]:
        """What ``manifest.json`` says, ready for JSON."""
        return {"schema": SCHEMA, **dataclasses.asdict(self)}


def read_manifest(path: Path) -> Manifest:
    """Read and check a ``manifest.json``. Raises InputError, in one line, for anything but a whole one of `SCHEMA`."""
    try:
        fields = _fields(path)
        if (seen := fields.pop("schema")) != SCHEMA:
            raise InputError(f"{path}: schema {seen!r}; this version reads {SCHEMA}: build the bundle again with it")
        return _manifest(fields, str(path))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise InputError(f"{path}: not a bundle's manifest ({reason}); build the bundle again") from error


def _fields(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path.parent}: no bundle, it has no {path.name}; make one with `unetsharp build-engine`")
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path.stat().st_size} bytes long")
    fields = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(fields, dict):
        raise TypeError("no JSON object")
    return fields


def _manifest(fields: dict[str, Any], source: str) -> Manifest:
    info = ModelInfo.from_json(json.dumps(fields.pop("info")), source=source)
    onnx = FileEntry(**fields.pop("onnx"))
    engines = tuple(_engine(dict(entry)) for entry in fields.pop("engines"))
    manifest = Manifest(info=info, onnx=onnx, engines=engines, **fields)
    _require(len({file.path for file in manifest.files()}) == len(manifest.files()), "a file is listed twice")
    return manifest


def _engine(fields: dict[str, Any]) -> EngineEntry:
    profile = {name: tuple(shape) for name, shape in fields.pop("profile").items()}
    return EngineEntry(
        file=FileEntry(**fields.pop("file")), targets=tuple(fields.pop("targets")), profile=profile, **fields
    )


def _stays_inside(path: str) -> bool:
    parts = PurePosixPath(path).parts
    plain = not any(character in path for character in "\\:\0")  # Windows separators and drives, C's end of string
    return plain and bool(parts) and not path.startswith("/") and ".." not in parts


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
