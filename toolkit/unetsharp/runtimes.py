"""Open a network with the runtime that suits it: the one place that knows which form of model runs where."""

from pathlib import Path

from unetsharp import machine
from unetsharp.build.bundle import Bundle, open_bundle
from unetsharp.build.choice import RUNTIMES as BUILDABLE
from unetsharp.build.flavours import RTX, TENSORRT
from unetsharp.cli.output import Output, Verbosity
from unetsharp.model_files import ModelKind, kind_of
from unetsharp_engines.errors import InputError, MissingCapabilityError
from unetsharp_engines.runtimes.base import Runtime

__all__ = ["RUNTIMES", "open_runtime"]

RUNTIMES = (*BUILDABLE, "torch")
"""What ``--runtime`` takes."""

_ENGINE_RUNTIMES = (TENSORRT.runtime, RTX.runtime)


def open_runtime(model: Path | None, name: str = "auto", *, output: Output | None = None) -> Runtime:
    """Load ``model``, whatever form it has, on the runtime called ``name``.

    ``model`` is weights (.safetensors), an ONNX, a bundle folder, or None for the edge-sized network that ships with
    the package. With ``auto`` the runtime is the fastest that works here; ``output`` is told which, and why. Any other
    name of `RUNTIMES` is used or refused.

    Raises InputError for what is no model, or a form that the runtime does not take; MissingCapabilityError for a
    runtime that this machine, or this version, lacks.
    """
    output = output or Output(verbosity=Verbosity.QUIET)
    if name not in RUNTIMES:
        raise InputError(f"--runtime {name}: wanted one of {', '.join(RUNTIMES)}")
    if model is None:
        return _shipped(name, output)
    opened = {
        ModelKind.WEIGHTS: _weights,
        ModelKind.ONNX: _onnx,
        ModelKind.BUNDLE: _bundle,
        ModelKind.ENGINE: _engine,
    }[kind_of(model)]
    return opened(model, name, output)


def _shipped(name: str, output: Output) -> Runtime:
    from importlib.resources import as_file, files

    output.say("Model: none given, so the edge-sized weights that ship with unetsharp (see its model card)")
    with as_file(files("unetsharp") / "assets" / "edge.onnx") as path:
        return _onnx(path, name, output)


def _weights(path: Path, name: str, output: Output) -> Runtime:
    if name not in ("auto", "torch"):
        form = "an ONNX" if name == "onnxruntime" else "a bundle"
        then = "" if name == "onnxruntime" else ", then `unetsharp build-engine model.onnx -o bundle`"
        raise InputError(f"{path}: weights, and {name} runs {form}: `unetsharp export {path} -o model.onnx`{then}")
    from unetsharp.export.torch_runtime import TorchRuntime

    runtime = TorchRuntime(path)
    output.say(f"Runtime: PyTorch {runtime.version} on {runtime.device}, {_why(name, 'since the model is weights')}")
    return runtime


def _onnx(path: Path, name: str, output: Output) -> Runtime:
    if name == "torch":
        raise InputError(f"{path}: an ONNX, and torch runs weights (.safetensors): use --runtime onnxruntime")
    if name in _ENGINE_RUNTIMES:
        raise InputError(f"{path}: an ONNX, and {name} runs a bundle: `unetsharp build-engine {path} -o bundle` first")
    return _on_onnxruntime(path, _why(name, "since the model is an ONNX"), output)


def _bundle(path: Path, name: str, output: Output) -> Runtime:
    if name == "torch":
        raise InputError(f"{path}: a bundle, and torch runs weights (.safetensors): use --runtime onnxruntime")
    bundle = open_bundle(path)
    if name in _ENGINE_RUNTIMES:
        _refuse_engine(bundle, name)
    why = (
        "since it holds no engine"
        if not bundle.manifest.engines
        else f"with the bundle's ONNX, since {_no_engine_here()}"
    )
    return _on_onnxruntime(bundle.read_onnx(), _why(name, why), output)


def _engine(path: Path, name: str, output: Output) -> Runtime:
    raise InputError(f"{path}: an engine without its manifest; give the bundle folder it came from")


def _refuse_engine(bundle: Bundle, name: str) -> None:
    """Say why an engine that was asked for by name is not run."""
    held = sorted({engine.runtime for engine in bundle.manifest.engines})
    if name not in held:
        raise InputError(
            f"{bundle.root}: holds engines for {', '.join(held) or 'no runtime'}, none for {name}: "
            f"build one with `unetsharp build-engine model.onnx -o bundle --runtime {name}`"
        )
    raise MissingCapabilityError(f"--runtime {name}: {_no_engine_here()}; --runtime onnxruntime runs the bundle's ONNX")


def _no_engine_here() -> str:
    """The reason, whatever the machine: engines are built by this version, and run by a later one."""
    lacking = "" if machine.gpus() else "this machine has no NVIDIA GPU, and "
    return f"{lacking}this version of unetsharp builds engines but does not run them"


def _on_onnxruntime(model: Path | bytes, why: str, output: Output) -> Runtime:
    from unetsharp_engines.runtimes.onnxruntime import OnnxRuntime

    runtime = OnnxRuntime(model)
    output.say(f"Runtime: ONNX Runtime {runtime.version} on the CPU, {why}")
    return runtime


def _why(name: str, reason: str) -> str:
    return reason if name == "auto" else "as asked"
