"""What a file or folder is, told by its content: weights, an ONNX, a bundle, a bare engine."""

from enum import Enum
from pathlib import Path

from unetsharp_engines.errors import InputError

__all__ = ["ENGINE_MAGICS", "MANIFEST", "ModelKind", "form_of", "kind_of"]

MANIFEST = "manifest.json"
"""The file that makes a folder, or a zip, a bundle."""

ENGINE_MAGICS: dict[bytes, str] = {b"ftrt": "tensorrt", b"ptrt": "tensorrt", b"vtrt": "tensorrt-rtx"}
"""First four bytes of a serialized engine → the runtime that it belongs to (TensorRT 8 to 10, TensorRT-RTX 1.7)."""

_ONNX_FIRST_FIELD = b"\x08"
"""Protobuf's tag of ``ir_version``, the field that every ONNX writer puts first."""

_ZIP_MAGIC = b"PK\x03\x04"

_WANTED = "give weights (.safetensors), an ONNX file or a bundle (a folder or a .zip)"


class ModelKind(Enum):
    """The forms a network comes in; values are what people call them."""

    WEIGHTS = "weights"
    ONNX = "ONNX"
    BUNDLE = "bundle"
    ENGINE = "engine"

    @property
    def named(self) -> str:
        """With its article."""
        return {"weights": "weights", "bundle": "a bundle"}.get(self.value, f"an {self.value}")


def kind_of(path: Path) -> ModelKind:
    """What ``path`` is. Its name plays no part. Raises InputError if it is missing, or none of the four."""
    if (form := form_of(path)) is not None:
        return form
    if path.is_dir():
        raise InputError(f"{path}: a folder without {MANIFEST}, so no bundle; {_WANTED}")
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder; {_WANTED}")
    raise InputError(f"{path}: {_looks(path)}, neither weights, nor ONNX, nor an engine; {_WANTED}")


def form_of(path: Path) -> ModelKind | None:
    """As `kind_of`, but None for what is missing, or none of the four."""
    if path.is_dir():
        return ModelKind.BUNDLE if (path / MANIFEST).is_file() else None
    return _form_of_file(path) if path.is_file() else None


def _form_of_file(path: Path) -> ModelKind | None:
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if head[:4] in ENGINE_MAGICS:
        return ModelKind.ENGINE
    if head[:4] == _ZIP_MAGIC:
        return ModelKind.BUNDLE
    # safetensors: the header's length in 8 bytes, then the header, which is a JSON object.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size:
        return ModelKind.WEIGHTS
    return ModelKind.ONNX if head[:1] == _ONNX_FIRST_FIELD else None


def _looks(path: Path) -> str:
    return "an empty file" if path.stat().st_size == 0 else f"a file of {path.stat().st_size} bytes"
