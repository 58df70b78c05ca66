"""A bundle: its manifest, whether every file is what the manifest says, who built its engines, and which run here."""

import dataclasses
from pathlib import Path
from typing import Any

from unetsharp import machine
from unetsharp.build.bundle import Bundle, open_bundle, problems_of
from unetsharp.build.fit import Host, host_of, misfits
from unetsharp.build.flavours import RTX, flavour_named, load
from unetsharp.build.manifest import EngineEntry
from unetsharp.build.plugin import holds_plugin
from unetsharp.inspection.inspector_json import layers_in
from unetsharp.inspection.layers import Layer
from unetsharp.inspection.rtx_program import kernels_of
from unetsharp_engines.errors import InputError, MissingCapabilityError

__all__ = ["facts_of"]


def facts_of(path: Path) -> dict[str, Any]:
    """The manifest; ``problems``: a line for each file whose hash does not fit; ``engines``: see `_engine`.

    Raises InputError for what is no whole bundle.
    """
    bundle = open_bundle(path)
    hosts = {runtime: _host(runtime) for runtime in {engine.runtime for engine in bundle.manifest.engines}}
    engines = [_engine(bundle, engine, hosts[engine.runtime]) for engine in bundle.manifest.engines]
    runnable = {engine["runtime"] for engine in engines if not engine["here"]}
    problems = problems_of(bundle)
    return {
        "size": sum(entry.size for entry in bundle.manifest.files()),
        "manifest": bundle.manifest.to_dict(),
        "problems": problems,
        "engines": engines,
        "runs_on": [*["onnxruntime"] * _runs_by_onnxruntime(bundle), *sorted(runnable)],
        **({} if problems else _layers(bundle, {engine["path"] for engine in engines if not engine["here"]})),
    }


def _runs_by_onnxruntime(bundle: Bundle) -> bool:
    """Whether its ONNX is whole, and asks for no kernel of TensorRT's."""
    try:
        return not holds_plugin(bundle.read_onnx())
    except InputError:
        return False


def _layers(bundle: Bundle, fitting: set[str]) -> dict[str, Any]:
    """``layers`` of an engine of which they are known, first one ``fitting`` this machine, and ``layers_of``, its path.

    Nothing where there is none.
    """
    bundle = dataclasses.replace(bundle, trusts_foreign=True)  # its engines are read, not run
    for engine in sorted(bundle.manifest.engines, key=lambda engine: engine.file.path not in fitting):
        if layers := _layers_of(bundle, engine):
            return {"layers": [dataclasses.asdict(layer) for layer in layers], "layers_of": engine.file.path}
    return {}


def _layers_of(bundle: Bundle, engine: EngineEntry) -> tuple[Layer, ...]:
    """As the engine's own file tells them, or as TensorRT did when it was built."""
    if engine.runtime == RTX.runtime:
        return kernels_of(bundle.read_engine(engine))
    told = bundle.read_inspected(engine)
    return () if told is None else layers_in(told, str(bundle.root / engine.file.path))


def _engine(bundle: Bundle, engine: EngineEntry, host: Host | str) -> dict[str, Any]:
    """Whether an engine is ``trusted``, as built by this user, and why it would not run ``here``, if so."""
    return {
        "path": engine.file.path,
        "runtime": engine.runtime,
        "trusted": bundle.is_trusted(engine),
        "here": [host] if isinstance(host, str) else misfits(engine, host),
    }


def _host(runtime: str) -> Host | str:
    """This machine, or why it runs no engine of ``runtime``."""
    if not machine.gpus():
        return "no: this machine's driver shows no NVIDIA GPU"
    try:
        return host_of(load(flavour_named(runtime)))
    except MissingCapabilityError as error:
        return str(error)
