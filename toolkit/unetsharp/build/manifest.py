"""``manifest.json``: what a bundle holds, for which machine, made how. Reading it trusts nothing it says."""

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from unetsharp.build.archive import stays_inside
from unetsharp.build.description import contract_facts, stain_target_facts
from unetsharp.build.flavours import RTX, TENSORRT
from unetsharp.build.strict_json import parse_object
from unetsharp.model_files import MANIFEST
from unetsharp_engines.errors import InputError
from unetsharp_engines.model_info import ModelInfo

__all__ = ["MAX_BYTES", "PRECISIONS", "SCHEMA", "EngineEntry", "FileEntry", "Manifest", "parse_manifest"]

SCHEMA = 3
"""Version of this layout, as bundles are written."""
READS = (2, 3)
"""Versions that are read; in 2 no engine had its layers ``inspected``. Others are not: a bundle is built again soon."""

MAX_BYTES = 1 << 20
"""A manifest is a few kilobytes; what is larger than this is none."""

PRECISIONS = ("fp32", "fp16", "int8")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"\d+(\.\d+){1,4}([a-z]+\d*)?")
_CUDA = re.compile(r"\d+(\.\d+)?")
_TARGET = re.compile(r"sm\d{2,3}")
_PLATFORM = re.compile(r"[a-z0-9]+-[a-z0-9_]+")
_AGAIN = "delete the bundle and build it again"
"""What helps against a manifest that this version cannot use."""
_LONGEST = 200
"""Characters of a path, and of a reason that is shown: a manifest's author chooses them."""


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file of the bundle."""

    path: str
    """Relative to the bundle, with forward slashes, never outside it."""
    sha256: str
    size: int
    """Bytes."""

    def __post_init__(self) -> None:
        """Raise ValueError unless the fields are what they should be."""
        _require(isinstance(self.path, str) and stays_inside(self.path), f"path {self.path!r} leaves the bundle")
        _require(len(self.path) <= _LONGEST, f"path of {len(self.path)} characters")
        _require(self.path == str(PurePosixPath(self.path)), f"path {self.path!r} is not written plainly")
        _require(self.path != MANIFEST, f"path {self.path!r} is the manifest's own")
        _require(_is_text(_SHA256, self.sha256), f"sha256 {self.sha256!r} is not 64 hex digits")
        _require(type(self.size) is int and self.size >= 0, f"size {self.size!r} is no number of bytes")


@dataclass(frozen=True, kw_only=True)
class EngineEntry:
    """An engine and where it fits."""

    file: FileEntry
    runtime: str
    """``tensorrt`` or ``tensorrt-rtx``."""
    version: str
    """Of the library that built it, e.g. ``1.7.1.116``."""
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
    gpu: str | None = None
    """Name of the GPU that its kernels were measured on; None for an engine that was built without one."""
    version_compatible: bool = False
    """Whether it carries the host code with which later TensorRT versions run it."""
    ampere_plus: bool = False
    """Whether it runs on every GPU from sm80 on (TensorRT's hardware compatibility level AMPERE_PLUS)."""
    layers: dict[str, str] = field(default_factory=dict)
    """Precision of each layer of what it was built from, by name, where it is mixed; empty where it is not."""
    inspected: FileEntry | None = None
    """What TensorRT said of its layers when it was built (`unetsharp.build.inspector`); None where the engine's own
    file tells them, or nothing does."""
    signature: str = ""
    """Of whom built it: see `unetsharp.build.trust`. Empty where no key could be kept."""

    def __post_init__(self) -> None:
        """Raise ValueError unless the fields are what they should be."""
        _require(isinstance(self.file, FileEntry), f"file {self.file!r}")
        _require(isinstance(self.inspected, FileEntry | None), f"inspected {self.inspected!r}")
        _require(self.runtime in (TENSORRT.runtime, RTX.runtime), f"runtime {self.runtime!r}")
        _require(_is_text(_VERSION, self.version), f"version {self.version!r}")
        _require(self.cuda is None or _is_text(_CUDA, self.cuda), f"cuda {self.cuda!r}")
        _require(_is_text(_PLATFORM, self.platform), f"platform {self.platform!r}")
        _require(self.gpu is None or isinstance(self.gpu, str), f"gpu {self.gpu!r}")
        _require(self.signature == "" or _is_text(_SHA256, self.signature), f"signature {self.signature!r}")
        for name in ("version_compatible", "ampere_plus"):
            _require(type(getattr(self, name)) is bool, f"{name} {getattr(self, name)!r}")
        _require(_is_number(self.seconds) and self.seconds >= 0, f"seconds {self.seconds!r}")
        _require(isinstance(self.options, dict), f"options {self.options!r}")
        _check_layers(self.layers)
        _check_targets(self.targets)
        _check_profile(self.profile)

    def files(self) -> tuple[FileEntry, ...]:
        """Its file, and what was said of it."""
        return (self.file,) if self.inspected is None else (self.file, self.inspected)

    @property
    def slot(self) -> tuple[str, str, str, frozenset[str]]:
        """Runtime, version, platform and targets: a bundle holds one engine of each."""
        return self.runtime, self.version, self.platform, frozenset(self.targets)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that ``manifest.json`` says, but for its ``schema``."""

    created: str
    """Date and time, UTC, ISO 8601."""
    tool_version: str
    info: ModelInfo
    precision: str
    """Of the engines, one for all of them: one of `PRECISIONS`. Without engines, of the ONNX."""
    onnx: FileEntry
    """The ONNX as it was given, or quantized; an FP16 engine is made from its conversion
    (`unetsharp.export.precision`)."""
    engines: tuple[EngineEntry, ...] = ()
    contract: dict[str, Any] = field(default_factory=contract_facts)
    """What the numbers mean that go in and come out; a reader takes its own contract only."""
    stain_target: dict[str, Any] = field(default_factory=stain_target_facts)
    """The appearance that pictures are normalized to; a reader takes its own only."""
    layers: dict[str, str] = field(default_factory=dict)
    """Precision of each layer of the ONNX, by name, where it is mixed; empty where all layers have the same."""
    quantization: dict[str, Any] | None = None
    """Calibration and drift, as ``unetsharp quantize`` left them in the ONNX; None for a float network."""

    def __post_init__(self) -> None:
        """Raise ValueError unless the fields are what they should be."""
        _require(isinstance(self.tool_version, str), f"tool_version {self.tool_version!r}")
        _require(self.precision in PRECISIONS, f"precision {self.precision!r}")
        _check_layers(self.layers)
        _require(self.quantization is None or isinstance(self.quantization, dict), "quantization is no object")
        datetime.fromisoformat(self.created)
        paths = [entry.path for entry in self.files()]
        _require(len(set(paths)) == len(paths), "a file is listed twice")
        slots = [engine.slot for engine in self.engines]
        _require(len(set(slots)) == len(slots), "two engines for the same GPUs and library")

    def files(self) -> tuple[FileEntry, ...]:
        """Every file of the bundle but the manifest."""
        return (self.onnx, *(file for engine in self.engines for file in engine.files()))

    def to_dict(self) -> dict[str, Any]:
        """What ``manifest.json`` says, ready for JSON."""
        return {"schema": SCHEMA, **dataclasses.asdict(self)}


def parse_manifest(content: bytes, source: str) -> Manifest:
    """Read and check a manifest; ``source`` names it.

    Raises InputError, in one line, for anything but a whole one of a schema in `READS`.
    """
    try:
        fields = parse_object(content)
        if type(seen := fields.pop("schema")) is not int or seen not in READS:
            reads = f"this version of unetsharp reads {' and '.join(map(str, READS))}; use the version that wrote it"
            raise InputError(f"{source}: schema {seen!r:.40}, {reads}, or {_AGAIN}")
        return _manifest(fields, source)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{source}: not a bundle's manifest ({_short(reason)}); {_AGAIN}") from error


def _manifest(fields: dict[str, Any], source: str) -> Manifest:
    fields = _fields_of(Manifest, fields, "the manifest")
    _require(isinstance(fields["info"], dict), "info is no object")
    info = ModelInfo.from_json(json.dumps(fields.pop("info")), source=source)
    _check_same("contract", fields["contract"], contract_facts(), source)
    _check_same("stain target", fields["stain_target"], stain_target_facts(), source)
    onnx = FileEntry(**_fields_of(FileEntry, fields.pop("onnx"), "onnx"))
    _require(isinstance(fields["engines"], list), "engines is no list")
    return Manifest(info=info, onnx=onnx, engines=tuple(map(_engine, fields.pop("engines"))), **fields)


def _engine(value: Any) -> EngineEntry:
    _require(isinstance(value, dict), "an engine is no object")
    fields = _fields_of(EngineEntry, {"inspected": None, **value}, "an engine")
    file = FileEntry(**_fields_of(FileEntry, fields.pop("file"), "an engine's file"))
    if fields["inspected"] is not None:
        fields["inspected"] = FileEntry(**_fields_of(FileEntry, fields["inspected"], "an engine's inspected layers"))
    targets, profile = fields.pop("targets"), fields.pop("profile")
    _require(isinstance(targets, list), f"targets {targets!r} is no list")
    _require(isinstance(profile, dict), "a profile is no object")
    _require(all(isinstance(shape, list) for shape in profile.values()), f"profile {profile!r}")
    shapes = {name: tuple(shape) for name, shape in profile.items()}
    return EngineEntry(file=file, targets=tuple(targets), profile=shapes, **fields)


def _fields_of(kind: type, value: object, what: str) -> dict[str, Any]:
    """A copy of ``value``, which must be an object with exactly the fields of dataclass ``kind``. Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} is no object")
    wanted = {known.name for known in dataclasses.fields(kind)}
    for name in sorted(wanted ^ set(value)):
        raise ValueError(f"{what} lacks {name!r}" if name in wanted else f"{what} has an unknown field {name!r}")
    return dict(value)


def _check_targets(targets: tuple[str, ...]) -> None:
    _require(all(_is_text(_TARGET, target) for target in targets), f"targets {targets!r}")
    _require(len(targets) > 0, "an engine without targets")
    _require(len(set(targets)) == len(targets), f"targets {targets!r} repeat")


def _check_profile(profile: dict[str, tuple[int, ...]]) -> None:
    shapes = [profile[name] for name in ("min", "opt", "max")]
    _require(len(profile) == 3, "a profile of more than min, opt and max")
    for shape in shapes:
        _require(len(shape) == 4 and all(type(n) is int and n > 0 for n in shape), f"a profile with shape {shape!r}")
    ordered = all(a <= b <= c for a, b, c in zip(*shapes, strict=True))
    _require(ordered and {shape[1] for shape in shapes} == {3}, f"a profile of {shapes!r}")


def _check_layers(layers: dict[str, str]) -> None:
    _require(isinstance(layers, dict), f"layers {layers!r}")
    _require(all(precision in PRECISIONS for precision in layers.values()), "layers of an unknown precision")


def _check_same(name: str, seen: object, wanted: dict[str, Any], source: str) -> None:
    """Raise InputError unless the manifest's ``name`` is this version's: numbers would mean something else."""
    if seen != wanted:
        theirs, ours = _short(str(_differing(seen, wanted))), _short(str(_differing(wanted, seen)))
        raise InputError(f"{source}: made with {name} {theirs}, this version of unetsharp has {ours}; {_AGAIN}")


def _differing(one: object, other: object) -> object:
    """What of ``one`` is not the same in ``other``."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return one
    return {key: value for key, value in one.items() if key not in other or other[key] != value}


def _is_text(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and bool(pattern.fullmatch(value))


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
