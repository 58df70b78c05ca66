"""Which commands work here: each needs packages, which pyproject.toml groups in extras, and some need a GPU."""

import importlib.metadata
import importlib.util
from dataclasses import dataclass

from packaging.requirements import Requirement

from unetsharp import machine
from unetsharp.build.flavours import TENSORRT

__all__ = ["missing", "what_works"]

_DISTRIBUTION = "unetsharp"


@dataclass(frozen=True, kw_only=True)
class _Need:
    command: str
    does: str
    extra: str = ""
    """The extra that brings what it needs; empty is the plain install."""
    tensorrt: bool = False
    """Needs TensorRT proper, which on a Jetson no extra brings."""
    gpu: bool = False
    """Needs the GPU that the engine is for."""


_COMMANDS = (
    _Need(command="infer", does="find nuclei, with ONNX Runtime on the CPU"),
    _Need(command="infer", does="… on scanners' own slides: MRXS, NDPI, DICOM", extra="wsi"),
    _Need(command="infer", does="… with weights, on PyTorch", extra="export"),
    _Need(command="infer", does="… with a bundle's TensorRT engine", extra="gpu", tensorrt=True, gpu=True),
    _Need(command="infer", does="… with a bundle's TensorRT-RTX engine", extra="gpu,rtx", gpu=True),
    _Need(command="evaluate", does="score a network on PanNuke"),
    _Need(command="train", does="train a network", extra="train"),
    _Need(command="data", does="check training data"),
    _Need(command="data", does="… and preview what training sees", extra="train"),
    _Need(command="export", does="weights → ONNX", extra="export"),
    _Need(command="quantize", does="ONNX → INT8 ONNX, judged on PanNuke"),
    _Need(command="build-engine", does="ONNX → bundle for ONNX Runtime"),
    _Need(command="build-engine", does="… for TensorRT-RTX, on any machine", extra="rtx"),
    _Need(command="build-engine", does="… for TensorRT, on the GPU it is for", tensorrt=True, gpu=True),
    _Need(command="validate", does="ONNX, INT8 and engine against the weights", extra="export"),
    _Need(command="demo", does="the whole path on a bundled picture"),
    _Need(command="demo", does="… from the weights on, export and engine included", extra="export,rtx"),
    _Need(command="bench", does="measure speed, with ONNX Runtime on the CPU"),
    _Need(command="bench", does="… beside PyTorch", extra="export"),
    _Need(command="inspect", does="say what a file is"),
)


def what_works() -> list[dict[str, str | bool | list[str]]]:
    """One entry a command or a way to use it: ``command``, ``does``, ``works``, ``missing`` and ``get`` (how)."""
    return [_entry(need) for need in _COMMANDS]


def _entry(need: _Need) -> dict[str, str | bool | list[str]]:
    # Whichever TensorRT is here will do: an extra asks for the newest, a Jetson has its own.
    lacking = [name for name in missing(need.extra) if Requirement(name).name != TENSORRT.module]
    get = [f"pip install '{_DISTRIBUTION}{f'[{need.extra}]' if need.extra else ''}'"] if lacking else []
    if need.tensorrt and importlib.util.find_spec(TENSORRT.module) is None:
        lacking, get = [TENSORRT.name, *lacking], [TENSORRT.install]  # which brings the others, too
    if need.gpu and not machine.gpus():
        lacking, get = ["an NVIDIA GPU with its driver", *lacking], ["a machine that has one", *get]
    return {
        "command": need.command,
        "does": need.does,
        "works": not lacking,
        "missing": lacking,
        "get": ", then ".join(get),
    }


def missing(extras: str) -> list[str]:
    """Requirements of the plain install and of ``extras`` (names with commas) that are unmet here, as pip has them."""
    wanted = ["", *filter(None, extras.split(","))]
    requirements = [Requirement(text) for text in importlib.metadata.requires(_DISTRIBUTION) or []]
    return sorted({_name(r) for r in requirements if any(_applies(r, extra) for extra in wanted) and not _is_met(r)})


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _is_met(requirement: Requirement) -> bool:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return requirement.specifier.contains(version, prereleases=True)


def _name(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"
