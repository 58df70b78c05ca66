"""An engine file, by its first bytes. It is never loaded: an engine is code."""

from pathlib import Path
from typing import Any

from unetsharp.model_files import ENGINE_MAGICS
from unetsharp_engines.files import sha256_of

__all__ = ["facts_of"]

_VERSION_AT = 24
"""Offset of four bytes: major, minor, patch, build of the library that wrote the engine. Told by NVIDIA for TensorRT
(github.com/NVIDIA/TensorRT, number 3073), seen in TensorRT-RTX 1.7; older engines (before 8.6) have other headers."""


def facts_of(path: Path) -> dict[str, Any]:
    """Size, hash, runtime and version of an engine."""
    with path.open("rb") as file:
        head = file.read(_VERSION_AT + 4)
    return {
        "size": path.stat().st_size,
        "sha256": sha256_of(path),
        "runtime": ENGINE_MAGICS[head[:4]],
        "version": ".".join(str(byte) for byte in head[_VERSION_AT:]),
        "runs_on": [],
    }
