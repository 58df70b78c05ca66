"""An engine file, by its first bytes. It is never loaded: an engine is code."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unetsharp.inspection.layers import picture
from unetsharp.inspection.rtx_program import kernels_of
from unetsharp.model_files import ENGINE_MAGICS
from unetsharp_engines.errors import InputError
from unetsharp_engines.files import replacing

__all__ = ["draw_layers", "facts_of"]

_VERSION_AT = 24
"""Offset of four bytes: major, minor, patch, build of the library that wrote the engine. Told by NVIDIA for TensorRT
(github.com/NVIDIA/TensorRT, number 3073), seen in TensorRT-RTX 1.7; older engines (before 8.6) have other headers."""


def facts_of(path: Path) -> dict[str, Any]:
    """Size, hash, runtime and version of an engine, and its ``layers`` where its file tells them (`rtx_program`)."""
    content = path.read_bytes()
    return {
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "runtime": ENGINE_MAGICS[content[:4]],
        "version": ".".join(str(byte) for byte in content[_VERSION_AT : _VERSION_AT + 4]),
        "runs_on": [],
        "layers_of": path.name,
        "layers": [dataclasses.asdict(kernel) for kernel in kernels_of(content)],
    }


def draw_layers(facts: Mapping[str, Any], path: Path) -> None:
    """Draw the layers among the ``facts`` of an engine or bundle as an SVG.

    Raises InputError where there are none, or no place for the file.
    """
    if not facts.get("layers"):
        raise InputError(f"{facts['path']}: its layers are not told; --picture draws those of TensorRT-RTX engines")
    try:
        with replacing(path) as temporary:
            temporary.write_text(picture(facts["layers"], facts["layers_of"]), encoding="utf-8")
    except OSError as error:
        raise InputError(f"--picture {path}: cannot be written there ({error.strerror})") from error
