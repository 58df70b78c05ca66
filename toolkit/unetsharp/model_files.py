"""What a file or folder is, told by its content: weights, an ONNX, a bundle, a bare engine."""

from enum import Enum
from pathlib import Path

from unetsharp_engines.errors import InputError

__all__ = ["ENGINE_MAGICS", "MANIFEST", "ModelKind", "kind_of"]

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


def kind_of(path: Path) -> ModelKind:
    """What ``path`` is. Its name plays no part. Raises InputError if it is missing, or none of the four."""
    if path.is_dir():
        if (path / MANIFEST).is_file():
            return ModelKind.BUNDLE
        raise InputError(f"{path}: a folder without {MANIFEST}, so no bundle; {_WANTED}")
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder; {_WANTED}")
    return _kind_of_file(path)


def _kind_of_file(path: Path) -> ModelKind:
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
    if head[:1] == _ONNX_FIRST_FIELD:
        return ModelKind.ONNX
    raise InputError(f"{path}: {_looks(path)}, neither weights, nor ONNX, nor an engine; {_WANTED}")


def _looks(path: Path) -> str:
    return "an empty file" if path.stat().st_size == 0 else f"a file of {path.stat().st_size} bytes"
