"""An engine file, by its first bytes. It is not loaded unless its maker is trusted: an engine is code."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unetsharp.build.flavours import RTX, TENSORRT, Loaded
from unetsharp.build.inspector import ask_inspector
from unetsharp.inspection.inspector_json import layers_in
from unetsharp.inspection.layers import Layer, picture
from unetsharp.inspection.rtx_program import kernels_of
from unetsharp.model_files import ENGINE_MAGICS
from unetsharp_engines.cuda.engine import load_tensorrt
from unetsharp_engines.errors import InputError
from unetsharp_engines.files import replacing

__all__ = ["draw_layers", "facts_of"]

_VERSION_AT = 24
"""Offset of four bytes: major, minor, patch, build of the library that wrote the engine. Told by NVIDIA for TensorRT
(github.com/NVIDIA/TensorRT, number 3073), seen in TensorRT-RTX 1.7; older engines (before 8.6) have other headers."""


_REMEDY = (
    "--picture draws those of TensorRT-RTX engines, of bundles that `build-engine` wrote with their layers, and, with "
    "--trust and TensorRT here, of a TensorRT engine's file"
)


def facts_of(path: Path, *, trust: bool = False) -> dict[str, Any]:
    """Size, hash, runtime and version of an engine, and its ``layers`` as far as they can be told.

    The file of a TensorRT-RTX engine tells them (`rtx_program`). A TensorRT engine has to be loaded for it, which
    ``trust`` allows. Then raises MissingCapabilityError without that TensorRT, InputError where it refuses the engine.
    """
    content = path.read_bytes()
    runtime = ENGINE_MAGICS[content[:4]]
    return {
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "runtime": runtime,
        "version": ".".join(str(byte) for byte in content[_VERSION_AT : _VERSION_AT + 4]),
        "runs_on": [],
        "layers_of": path.name,
        "loaded": trust and runtime == TENSORRT.runtime,
        "layers": [dataclasses.asdict(layer) for layer in _layers(content, runtime, str(path), trust=trust)],
    }


def _layers(content: bytes, runtime: str, source: str, *, trust: bool) -> tuple[Layer, ...]:
    if runtime == RTX.runtime:
        return kernels_of(content)
    if not trust:
        return ()
    loaded = Loaded(flavour=TENSORRT, trt=load_tensorrt(TENSORRT.runtime))
    return layers_in(ask_inspector(loaded, content, lambda _: None, host_code=True), source)


def draw_layers(facts: Mapping[str, Any], path: Path) -> None:
    """Draw the layers among the ``facts`` of an engine or bundle as an SVG.

    Raises InputError where there are none, or no place for the file.
    """
    if not facts.get("layers"):
        raise InputError(f"{facts['path']}: its layers are not told; {_REMEDY}")
    try:
        with replacing(path) as temporary:
            temporary.write_text(picture(facts["layers"], facts["layers_of"]), encoding="utf-8")
    except OSError as error:
        raise InputError(f"--picture {path}: cannot be written there ({error.strerror})") from error
