"""Open a network with the runtime that suits it: the one place that knows which form of model runs where."""

from dataclasses import dataclass
from pathlib import Path

from unetsharp import machine
from unetsharp.build.bundle import Bundle, open_bundle
from unetsharp.build.choice import RUNTIMES as BUILDABLE
from unetsharp.build.fit import engines_for, fitting_engine, host_of
from unetsharp.build.flavours import RTX, TENSORRT, Loaded, flavour_named
from unetsharp.build.manifest import EngineEntry
from unetsharp.build.rebuild import rebuilt
from unetsharp.cli.output import Output, Verbosity
from unetsharp.model_files import ModelKind, kind_of
from unetsharp_engines.errors import InputError, MissingCapabilityError
from unetsharp_engines.runtimes.base import Runtime

__all__ = ["RUNTIMES", "check_gpu", "open_runtime"]

RUNTIMES = (*BUILDABLE, "torch")
"""What ``--runtime`` takes."""

_ENGINE_RUNTIMES = (TENSORRT.runtime, RTX.runtime)
"""Fastest first."""


@dataclass(frozen=True, kw_only=True)
class _Wish:
    """What the user said."""

    name: str
    trust: bool
    rebuild: bool
    output: Output


def open_runtime(
    model: Path | None, name: str = "auto", *, trust: bool = False, rebuild: bool = False, output: Output | None = None
) -> Runtime:
    """Load ``model``, whatever form it has, on the runtime called ``name``.

    ``model`` is weights (.safetensors), an ONNX, a bundle, or None for the edge-sized network that ships with the
    package. With ``auto`` the runtime is the fastest that works here; ``output`` is told which, and why. Any other
    name of `RUNTIMES` is used or refused. ``trust`` is the user's word that a bundle's engine may run though it was
    built elsewhere; ``rebuild`` builds one for this machine where the bundle holds none that may run here.

    Raises InputError for what is no model, or a form that the runtime does not take; MissingCapabilityError for a
    runtime that this machine lacks.
    """
    if name not in RUNTIMES:
        raise InputError(f"--runtime {name}: wanted one of {', '.join(RUNTIMES)}")
    wish = _Wish(name=name, trust=trust, rebuild=rebuild, output=output or Output(verbosity=Verbosity.QUIET))
    kind = ModelKind.ONNX if model is None else kind_of(model)
    check_gpu(name)
    if rebuild and kind is not ModelKind.BUNDLE:
        raise InputError(f"--rebuild builds an engine into a bundle, and {model or 'the shipped network'} is none")
    if model is None:
        return _shipped(wish)
    opened = {
        ModelKind.WEIGHTS: _weights,
        ModelKind.ONNX: _onnx,
        ModelKind.BUNDLE: _bundle,
        ModelKind.ENGINE: _engine,
    }[kind]
    return opened(model, wish)


def check_gpu(name: str) -> None:
    """Raise MissingCapabilityError where ``name`` is a runtime of engines, and this machine has no GPU for them."""
    if name in _ENGINE_RUNTIMES and not machine.gpus():
        raise MissingCapabilityError(
            f"--runtime {name}: engines run on an NVIDIA GPU, and this machine's driver shows none (`unetsharp doctor` "
            "says more); --runtime onnxruntime runs the bundle's ONNX"
        )


def _shipped(wish: _Wish) -> Runtime:
    from importlib.resources import as_file, files

    wish.output.say("Model: none given, so the edge-sized weights that ship with unetsharp (see its model card)")
    with as_file(files("unetsharp") / "assets" / "edge.onnx") as path:
        return _onnx(path, wish)


def _weights(path: Path, wish: _Wish) -> Runtime:
    name = wish.name
    if name not in ("auto", "torch"):
        form = "an ONNX" if name == "onnxruntime" else "a bundle"
        then = "" if name == "onnxruntime" else ", then `unetsharp build-engine model.onnx -o bundle`"
        raise InputError(f"{path}: weights, and {name} runs {form}: `unetsharp export {path} -o model.onnx`{then}")
    from unetsharp.export.torch_runtime import TorchRuntime

    runtime = TorchRuntime(path)
    why = _why(name, "since the model is weights")
    wish.output.say(f"Runtime: PyTorch {runtime.version} on {runtime.device}, {why}")
    return runtime


def _onnx(path: Path, wish: _Wish) -> Runtime:
    name = wish.name
    if name == "torch":
        raise InputError(f"{path}: an ONNX, and torch runs weights (.safetensors): use --runtime onnxruntime")
    if name in _ENGINE_RUNTIMES:
        raise InputError(f"{path}: an ONNX, and {name} runs a bundle: `unetsharp build-engine {path} -o bundle` first")
    return _on_onnxruntime(path, _why(name, "since the model is an ONNX"), wish.output)


def _bundle(path: Path, wish: _Wish) -> Runtime:
    if wish.name == "torch":
        raise InputError(f"{path}: a bundle, and torch runs weights (.safetensors): use --runtime onnxruntime")
    bundle = open_bundle(path, trust=wish.trust)
    if wish.name in _ENGINE_RUNTIMES:
        return _on_engine(bundle, wish.name, "as asked", wish)
    if wish.name == "onnxruntime":
        return _on_onnxruntime(bundle.read_onnx(), "as asked", wish.output)
    return _fastest(bundle, wish)


def _engine(path: Path, wish: _Wish) -> Runtime:
    raise InputError(f"{path}: an engine without its manifest; give the bundle it came from")


def _fastest(bundle: Bundle, wish: _Wish) -> Runtime:
    """An engine of the bundle where one may run here, else its ONNX, with the reason."""
    if not machine.gpus() and (bundle.manifest.engines or wish.rebuild):
        why = "with the bundle's ONNX, since this machine has no NVIDIA GPU"
        return _on_onnxruntime(bundle.read_onnx(), why, wish.output)
    held = {engine.runtime for engine in bundle.manifest.engines}
    attempts = [(name, False) for name in _ENGINE_RUNTIMES if name in held]
    attempts += [(name, True) for name in _ENGINE_RUNTIMES if wish.rebuild]
    reasons = []
    for name, rebuild in attempts:
        try:
            chosen = _choose(bundle, name, rebuild, wish.output)
        except (InputError, MissingCapabilityError) as error:
            reasons.append(str(error))
            continue
        content = chosen.bundle.read_engine(chosen.engine)  # a damaged engine is refused, not passed over
        try:
            return _start(chosen, content, "the fastest here: an engine for this GPU", wish)
        except (InputError, MissingCapabilityError) as error:
            reasons.append(str(error))
    why = f"with the bundle's ONNX, since {'; '.join(reasons)}" if reasons else "since it holds no engine"
    return _on_onnxruntime(bundle.read_onnx(), why, wish.output)


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """An engine that may run here."""

    loaded: Loaded
    bundle: Bundle
    engine: EngineEntry


def _on_engine(bundle: Bundle, name: str, why: str, wish: _Wish) -> Runtime:
    chosen = _choose(bundle, name, wish.rebuild, wish.output)
    return _start(chosen, chosen.bundle.read_engine(chosen.engine), why, wish)


def _choose(bundle: Bundle, name: str, rebuild: bool, output: Output) -> _Chosen:
    """The bundle's engine for this machine, built now if ``rebuild`` and none may run."""
    try:
        return _find(bundle, name)
    except InputError:
        if not rebuild:
            raise
    return _find(rebuilt(bundle, name, output), name)


def _find(bundle: Bundle, name: str) -> _Chosen:
    engines_for(bundle, name)
    check_gpu(name)  # with --runtime auto, too
    from unetsharp_engines.cuda.engine import load_tensorrt

    loaded = Loaded(flavour=flavour_named(name), trt=load_tensorrt(name))
    engine = fitting_engine(bundle, host_of(loaded))
    bundle.check_trusted(engine)
    return _Chosen(loaded=loaded, bundle=bundle, engine=engine)


def _start(chosen: _Chosen, content: bytes, why: str, wish: _Wish) -> Runtime:
    """Run ``content``, the engine's verified bytes."""
    from unetsharp_engines.runtimes.tensorrt import TensorRtRuntime

    runtime = TensorRtRuntime(
        content,
        chosen.bundle.manifest.info,
        name=chosen.loaded.flavour.runtime,
        source=str(chosen.bundle.root / chosen.engine.file.path),
        host_code=chosen.engine.version_compatible,
    )
    wish.output.say(f"Runtime: {chosen.loaded.label} on {runtime.device}, {why}")
    return runtime


def _on_onnxruntime(model: Path | bytes, why: str, output: Output) -> Runtime:
    from unetsharp_engines.runtimes.onnxruntime import OnnxRuntime

    runtime = OnnxRuntime(model)
    output.say(f"Runtime: ONNX Runtime {runtime.version} on the CPU, {why}")
    return runtime


def _why(name: str, reason: str) -> str:
    return reason if name == "auto" else "as asked"
