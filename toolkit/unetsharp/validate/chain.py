"""The chain from the trained network to what is deployed: each step a network that can be opened and run."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetsharp.build.bundle import Bundle, problems_of
from unetsharp.build.fit import fitting_engine, host_of
from unetsharp.build.flavours import flavour_named, is_strongly_typed, load
from unetsharp.build.manifest import EngineEntry
from unetsharp.build.pipeline import typed
from unetsharp.build.source import Source, read_source
from unetsharp.model_files import ModelKind, kind_of
from unetsharp.quantize.quantizer import QUANTIZATION_KEY
from unetsharp.runtimes import check_gpu, open_runtime
from unetsharp_engines.contract import TILE
from unetsharp_engines.errors import InputError, MissingCapabilityError
from unetsharp_engines.files import sha256_of
from unetsharp_engines.model_info import ModelInfo
from unetsharp_engines.rewrites import REWRITES_KEY, TAIL_KEY
from unetsharp_engines.runtimes.base import Runtime
from unetsharp_engines.runtimes.onnxruntime import OnnxRuntime

if TYPE_CHECKING:
    import onnx

    from unetsharp.export.torch_runtime import TorchRuntime

__all__ = ["Chain", "Step", "chain_of"]

_EXPORTS = {False: ("exported", "Exported ONNX"), True: ("rewritten", "Rewritten ONNX")}
"""Key and title of a float export, by whether it is rewritten."""

_TYPED = {"fp32": "FP32 ONNX", "fp16": "FP16 ONNX", "int8": "INT8 + FP16 ONNX"}
"""What an engine was built from, by its precision."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One network of the chain."""

    key: str
    """``reference``, ``exported``, ``rewritten``, ``fp16``, ``int8``, ``typed``; the last is called by its runtime."""
    title: str
    precision: str
    """``fp32``, ``fp16`` or ``int8``."""
    origin: str
    """Where it comes from, a sentence or two."""
    size: int
    """Of its file, bytes."""
    sha256: str
    open: Callable[[], Runtime]
    """Raises MissingCapabilityError where this machine cannot run it."""
    onnx: bytes | None = None
    """The ONNX that it runs as it is; None for what is no ONNX, or is changed when it is loaded."""
    built_from: bytes | None = None
    """The ONNX that an engine was built from; None for what is none."""


@dataclass(frozen=True, kw_only=True)
class Chain:
    """From the reference, which stands first, to what is deployed, which stands last."""

    steps: tuple[Step, ...]
    info: ModelInfo
    sides: tuple[int, int]
    """Height and width that the networks take."""
    quantization: dict[str, Any] | None
    """What the INT8 ONNX says of how it was made; None without INT8."""
    left_out: tuple[str, ...]
    """Engines of the bundle that are no step, a sentence each."""


def chain_of(bundle: Bundle, reference: Path, runtime: str, *, trust: bool = False) -> Chain:
    """The steps from ``reference``, weights or their fp32 ONNX, to ``bundle`` on ``runtime`` (``auto``: its engines).

    ``trust`` is the user's word that engines that others built may run. Raises InputError for a
    damaged bundle, where the two are not of one network, or the runtime does not fit; MissingCapabilityError for
    weights without PyTorch.
    """
    if problems := problems_of(bundle):
        raise InputError(problems[0])
    kept = read_source(bundle.root)
    deployed = _deployed(bundle, kept, runtime, trust=trust)
    start = _from_weights(reference, kept) if _is_weights(reference, kept) else [_from_onnx(reference)]
    return Chain(
        steps=(*start, *_in_onnx(kept, deployed[0]), *deployed),
        info=kept.info,
        sides=_sides(kept),
        quantization=_quantization(kept.model),
        left_out=_left_out(bundle, deployed),
    )


def _sides(kept: Source) -> tuple[int, int]:
    height, width = (side or kept.info.tile for side in kept.input_shape[2:])
    if max(height, width) > TILE:
        raise InputError(f"{kept.path}: takes {height}×{width} pixels, and PanNuke's patches are {TILE}×{TILE}")
    return height, width


def _is_weights(reference: Path, kept: Source) -> bool:
    """Whether ``reference`` is weights rather than an ONNX. Raises InputError unless it is of the network ``kept``."""
    kind = kind_of(reference)
    if kind not in (ModelKind.WEIGHTS, ModelKind.ONNX):
        raise InputError(f"--reference {reference}: {kind.named}; give the weights (.safetensors) or their fp32 ONNX")
    weights = kind is ModelKind.WEIGHTS
    seen = sha256_of(reference) if weights else read_source(reference).info.weights_sha256
    if seen != kept.info.weights_sha256:
        raise InputError(
            f"--reference {reference}: weights with the SHA-256 {seen[:12] or 'unknown'}, and the bundle was made of "
            f"{kept.info.weights_sha256[:12] or 'unknown'}: drift is measured against the weights it came from"
        )
    return weights


def _from_onnx(path: Path) -> Step:
    source = read_source(path)
    if source.precision != "fp32":
        raise InputError(f"--reference {path}: is {source.precision}; give the weights or the fp32 ONNX it was made of")
    origin = "The float32 ONNX that was given as the reference. What export made of the weights is not in this report."
    return _onnx_step("reference", "Reference ONNX", source.content, "fp32", origin)


def _from_weights(weights: Path, kept: Source) -> list[Step]:
    """PyTorch, and what ``unetsharp export`` makes of ``weights`` on the way to the bundle's ONNX ``kept``."""
    from unetsharp.export.torch_runtime import TorchRuntime

    reference = Step(
        key="reference",
        title="PyTorch",
        precision="fp32",
        origin="The trained weights, run by PyTorch in float32.",
        size=weights.stat().st_size,
        sha256=kept.info.weights_sha256,
        open=partial(TorchRuntime, weights),
    )
    with TorchRuntime(weights, device="cpu") as network:
        remade = [_remade(network, kept, rewrite) for rewrite in _exports_before(kept)]
    return [reference, *remade]


def _exports_before(kept: Source) -> list[bool]:
    """Exports, without or with rewrites, that lie between the weights and ``kept``."""
    rewritten = _is_rewritten(kept.model)
    plain = [False] if rewritten or kept.precision != "fp32" else []
    return [*plain, *([True] if rewritten and kept.precision != "fp32" else [])]


def _remade(network: "TorchRuntime", kept: Source, rewrite: bool) -> Step:
    from unetsharp.export.exporter import ExportSettings, convert

    opset = next(entry.version for entry in kept.model.opset_import if not entry.domain)
    tail_less = rewrite and TAIL_KEY in _metadata(kept.model)
    settings = ExportSettings(size=kept.info.tile, opset=opset, rewrite=rewrite, tail_less=tail_less)
    content = convert(network, settings).content
    how = "export does, with its exact rewrites" if rewrite else "export --no-rewrite does"
    was_quantized = _was_quantized(content, kept) if rewrite is _is_rewritten(kept.model) else ""
    key, title = _EXPORTS[rewrite]
    return _onnx_step(key, title, content, "fp32", f"Made again from the weights, as unetsharp {how}.{was_quantized}")


def _was_quantized(content: bytes, kept: Source) -> str:
    """Whether ``content`` is the very file that the INT8 ONNX was made of; nothing where there is none."""
    made = _quantization(kept.model)
    if made is None:
        return ""
    if made["float_sha256"] == hashlib.sha256(content).hexdigest():
        return " Byte for byte the file that was quantized."
    return " Its bytes differ from those of the file that was quantized: other versions of the tools wrote that."


def _in_onnx(kept: Source, deployed: Step) -> list[Step]:
    """The bundle's ONNX as it is, and what an engine was built from, unless that is what is ``deployed``."""
    steps = []
    if deployed.key != "onnxruntime" or _is_tuned(kept):
        key, title = (kept.precision, f"{kept.precision.upper()} ONNX")
        if kept.precision == "fp32":
            key, title = _EXPORTS[_is_rewritten(kept.model)]
        origin = "The bundle's ONNX, run exactly as the file has it."
        steps.append(_onnx_step(key, title, kept.content, kept.precision, origin))
    if deployed.built_from not in (None, kept.content):
        assert deployed.built_from is not None
        origin = "The bundle's ONNX as the engine was built from it: with the rewrites and number formats that suit it."
        steps.append(_onnx_step("typed", _TYPED[deployed.precision], deployed.built_from, deployed.precision, origin))
    return steps


def _deployed(bundle: Bundle, kept: Source, runtime: str, *, trust: bool) -> list[Step]:
    """What ``runtime`` runs of ``bundle``; ``auto`` is every runtime that it has engines for, or else its ONNX."""
    held = sorted({engine.runtime for engine in bundle.manifest.engines})
    if runtime == "auto" and held:
        return [_engine(bundle, kept, name, trust=trust) for name in held]
    if runtime in ("auto", "onnxruntime"):
        return [_on_onnxruntime(bundle, kept)]
    if runtime not in held:
        check_gpu(runtime)
        raise InputError(
            f"--runtime {runtime}: {bundle.root} holds engines for {', '.join(held) or 'no runtime'}; "
            f"onnxruntime runs its ONNX"
        )
    return [_engine(bundle, kept, runtime, trust=trust)]


def _on_onnxruntime(bundle: Bundle, kept: Source) -> Step:
    given = ", with the rewrites that make it fast there" if _is_tuned(kept) else ""
    return Step(
        key="onnxruntime",
        title="ONNX Runtime",
        precision=kept.precision,
        origin=f"The bundle as unetsharp infer runs it on the CPU{given}.",
        size=bundle.manifest.onnx.size,
        sha256=bundle.manifest.onnx.sha256,
        open=partial(open_runtime, bundle.root, "onnxruntime"),
        onnx=None if _is_tuned(kept) else kept.content,
    )


def _engine(bundle: Bundle, kept: Source, runtime: str, *, trust: bool) -> Step:
    flavour, entry = flavour_named(runtime), _engine_here(bundle, runtime)
    strongly = is_strongly_typed(runtime, entry.version)
    return Step(
        key=runtime,
        title=f"{flavour.name} engine",
        precision=bundle.manifest.precision,
        origin=f"The bundle's engine, built by {flavour.name} {entry.version} for {', '.join(entry.targets)}.",
        size=entry.file.size,
        sha256=entry.file.sha256,
        open=partial(_opened_engine, bundle, runtime, trust),
        built_from=typed(kept, bundle.manifest.precision, runtime=runtime, strongly=strongly),
    )


def _engine_here(bundle: Bundle, runtime: str) -> EngineEntry:
    """The engine of ``runtime`` that would run on this machine; the first where none does, and opening it says why."""
    try:
        return fitting_engine(bundle, host_of(load(flavour_named(runtime))))
    except (InputError, MissingCapabilityError):
        return next(engine for engine in bundle.manifest.engines if engine.runtime == runtime)


def _opened_engine(bundle: Bundle, runtime: str, trust: bool) -> Runtime:
    """Raises MissingCapabilityError for whatever keeps a sound engine from running here: GPU, version, trust."""
    try:
        return open_runtime(bundle.root, runtime, trust=trust)
    except InputError as error:
        raise MissingCapabilityError(str(error)) from error


def _left_out(bundle: Bundle, deployed: list[Step]) -> tuple[str, ...]:
    ran = {step.sha256 for step in deployed}
    return tuple(
        f"The bundle also holds an engine for {engine.runtime} ({', '.join(engine.targets)}). It was not run: nothing "
        "here speaks for it."
        for engine in bundle.manifest.engines
        if engine.file.sha256 not in ran
    )


def _onnx_step(key: str, title: str, content: bytes, precision: str, origin: str) -> Step:
    return Step(
        key=key,
        title=title,
        precision=precision,
        origin=origin,
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        open=partial(OnnxRuntime, content, tuned=False),
        onnx=content,
    )


def _is_tuned(kept: Source) -> bool:
    """Whether ONNX Runtime is given another network than the file holds: see `OnnxRuntime`."""
    return _is_rewritten(kept.model) and kept.precision != "fp16"


def _is_rewritten(model: "onnx.ModelProto") -> bool:
    return REWRITES_KEY in _metadata(model)


def _quantization(model: "onnx.ModelProto") -> dict[str, Any] | None:
    text = _metadata(model).get(QUANTIZATION_KEY)
    return json.loads(text) if text else None


def _metadata(model: "onnx.ModelProto") -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}
