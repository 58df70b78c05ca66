"""``build-engine`` as a function: choose a runtime, convert, build, write the bundle."""

import dataclasses
import datetime
import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

from unetsharp import machine
from unetsharp.build.addition import precision_to_add
from unetsharp.build.builder import Plan, Profile, Tuning, build_engine
from unetsharp.build.bundle import Bundle, check_replaceable, file_entry, open_bundle, with_engine, write_bundle
from unetsharp.build.choice import Choice, choose
from unetsharp.build.description import layer_precisions, quantization_facts
from unetsharp.build.flavours import RTX, TURING, Loaded
from unetsharp.build.inspector import ask_inspector
from unetsharp.build.manifest import EngineEntry, Manifest
from unetsharp.build.plugin import check_takes_plugin, holds_plugin
from unetsharp.build.source import Source, parse_onnx, read_source
from unetsharp.build.trust import check_key, signed
from unetsharp.cli.output import Output
from unetsharp.quantize.state import forget
from unetsharp_engines import __version__
from unetsharp_engines.errors import InputError, MissingCapabilityError
from unetsharp_engines.rewrites.plugin_node import OP_TYPE

__all__ = ["BuildOptions", "build_bundle", "typed"]

_ONNX_FILE = "model.onnx"
_ENGINE, _LAYERS = ".plan", ".layers.json"
"""How the names of an engine and of what is said of it end."""
_TOLD = ("level", "workspace")
"""Of `Tuning`, what the manifest keeps under ``options``."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How to build. Raises InputError for values that no build could use."""

    runtime: str = "auto"
    """``auto``, ``tensorrt``, ``tensorrt-rtx`` or ``onnxruntime``."""
    precision: str | None = None
    """``fp32``, ``fp16`` or ``int8``; None is the ONNX's own, but fp16 for TensorRT where that is fp32."""
    calibration: Path | None = None
    """PanNuke folder to quantize a float32 ONNX on, for ``int8``."""
    targets: tuple[str, ...] = ()
    """Compute capabilities, e.g. ``("sm86", "sm89")``; none is the runtime's default."""
    batch: tuple[int, int, int] = (1, 8, 16)
    """Smallest, best and largest number of tiles at once."""
    tuning: Tuning = dataclasses.field(default_factory=Tuning)
    add: bool = False
    """Add the engine to the bundle that is there, which keeps its others, instead of writing a new bundle."""

    def __post_init__(self) -> None:
        """Check what can be checked without a network."""
        smallest, best, largest = self.batch
        if not 1 <= smallest <= best <= largest:
            raise InputError(f"--batch {smallest},{best},{largest}: wanted 1 ≤ MIN ≤ OPT ≤ MAX, such as 1,8,16")
        if self.calibration is not None and self.precision != "int8":
            raise InputError("--calibration serves --int8 alone; give both, or neither")


def build_bundle(onnx: Path, root: Path, options: BuildOptions, output: Output) -> Bundle:
    """Build the exported network ``onnx``, or that of a bundle, into the bundle ``root`` (folder or .zip); return it.

    What can be refused is refused before the build begins. Raises InputError for files and options that do not fit,
    MissingCapabilityError for a runtime that this machine lacks.
    """
    check_replaceable(root)
    check_key()
    source = read_source(onnx)
    if options.add:
        precision = precision_to_add(open_bundle(root), source, options.precision)
        options = dataclasses.replace(options, precision=precision)
    choice = choose(options.runtime, options.targets)
    _check_options(options, source, choice)
    output.say(f"Runtime: {choice.label}, {choice.why}")
    output.detail(f"  {source.path}: {source.precision}, {_shown(source.input_shape)}, made of {source.info.name}")
    if options.precision == "int8" and source.precision == "fp32":
        source = _quantized(source, choice, options, output, root)
    elif source.precision == "int8":
        _check_placement(source, choice, output)
    bundle = _built(source, choice, root, options, output)
    forget(root)
    return bundle


def _built(source: Source, choice: Choice, root: Path, options: BuildOptions, output: Output) -> Bundle:
    if choice.loaded is None:
        return _write(root, source, options, (), {})
    entry, files = _engine(source, choice.loaded, choice.targets, options, output)
    if options.add:
        return with_engine(open_bundle(root), entry, files, precision=_precision(source, options))
    return _write(root, source, options, (entry,), files)


def _shown(shape: tuple[int | None, ...]) -> str:
    return " × ".join("any" if side is None else str(side) for side in shape)


def _check_options(options: BuildOptions, source: Source, choice: Choice) -> None:
    _check_int8(options, source)
    if options.add and choice.loaded is None:
        raise MissingCapabilityError(f"--add needs an engine to add, and ONNX Runtime builds none; {RTX.install}")
    if options.precision == "fp32" and source.precision == "fp16":
        raise InputError(f"{source.path}: its tensors are fp16 already; --fp32 wants the fp32 export")
    if choice.loaded is None and options.precision == "fp16" and source.precision == "fp32":
        if options.runtime == "auto":
            raise MissingCapabilityError(f"--fp16 needs an engine, and no TensorRT can be used here; {RTX.install}")
        raise InputError("--fp16 with ONNX Runtime: on the CPU fp16 is slower than fp32; leave it out")
    if holds_plugin(source.content):
        _check_plugin(options, source, choice)
    _check_tuning(options.tuning, choice)


def _check_plugin(options: BuildOptions, source: Source, choice: Choice) -> None:
    """Raise, for a network with a kernel of ours, unless it goes as it is to a TensorRT that takes one."""
    if choice.loaded is None:
        raise InputError(
            f"{source.path}: holds {OP_TYPE}, a kernel for TensorRT; leave the rewrite deep-one-kernel out"
        )
    check_takes_plugin(choice.loaded)
    if (wanted := _precision(source, options)) != source.precision:
        raise InputError(
            f"{source.path}: is {source.precision} and holds {OP_TYPE}, which only TensorRT runs, so that nothing here "
            f"can judge it in {wanted}; convert it by unetsharp.export.precision.to_fp16, or leave deep-one-kernel out"
        )


def _check_tuning(tuning: Tuning, choice: Choice) -> None:
    """Raise InputError for what the TensorRT of ``choice`` does not know."""
    loaded, asked = choice.loaded, tuning.asked()
    limited = asked.pop("time-limit", None)
    if limited and (loaded is None or not loaded.can_be_stopped):
        instead = ", and use --level 1 to be quick" if loaded is not None else ""
        raise InputError(f"--time-limit: {choice.label} cannot be stopped; leave it out{instead}")
    if asked and (loaded is None or not loaded.flavour.autotunes):
        option = next(iter(asked))
        raise InputError(f"--{option}: {choice.label} measures no kernels while it builds; leave it out")


def _check_int8(options: BuildOptions, source: Source) -> None:
    if source.precision == "int8" and options.precision in ("fp32", "fp16"):
        raise InputError(f"{source.path}: is quantized (INT8); --{options.precision} wants the fp32 export")
    if source.precision == "int8" and options.calibration is not None:
        raise InputError(f"{source.path}: is quantized already; leave --calibration out")
    if options.precision == "int8" and source.precision == "fp16":
        raise InputError(f"{source.path}: its tensors are fp16; --int8 wants the fp32 export")
    if options.precision == "int8" and source.precision == "fp32" and options.calibration is None:
        raise InputError("--int8 needs --calibration DIR, a PanNuke folder, or an ONNX that `unetsharp quantize` wrote")


def _check_placement(source: Source, choice: Choice, output: Output) -> None:
    """Raise InputError for INT8 placed for a CPU where TensorRT is to run it; warn of the other way round."""
    for_cpu = (quantization_facts(source.model) or {}).get("runtime") == "onnxruntime"
    if for_cpu and choice.loaded is not None:
        raise InputError(
            f"{source.path}: was quantized for ONNX Runtime, and {choice.label} takes no uint8; "
            f"quantize it with --runtime tensorrt"
        )
    if not for_cpu and choice.loaded is None:
        output.warn("quantized for TensorRT: ONNX Runtime is faster with fp32, or quantized with --runtime onnxruntime")


def _quantized(source: Source, choice: Choice, options: BuildOptions, output: Output, root: Path) -> Source:
    """The INT8 network of float ``source``, as ``unetsharp quantize`` makes it for the runtime chosen.

    What is done of it when it is stopped is kept beside ``root``, and taken up again.
    """
    from unetsharp.quantize.quantizer import QuantizeSettings, quantize_source

    assert options.calibration is not None
    settings = QuantizeSettings(runtime="onnxruntime" if choice.loaded is None else "tensorrt")
    quantized = quantize_source(source, options.calibration, settings, output, state=root)
    model = parse_onnx(quantized.content, source.path)
    return dataclasses.replace(source, content=quantized.content, model=model, precision="int8")


def _precision(source: Source, options: BuildOptions) -> str:
    """Of the engine."""
    return options.precision or ("int8" if source.precision == "int8" else "fp16")


def _engine(
    source: Source, loaded: Loaded, targets: tuple[str, ...], options: BuildOptions, output: Output
) -> tuple[EngineEntry, dict[str, bytes]]:
    """The engine's entry in the manifest, and its files by path."""
    precision = _precision(source, options)
    if TURING in targets and len(targets) > 1:
        output.warn(f"{TURING} (Turing) in one engine with newer GPUs slows those: better a bundle of its own")
    plan = Plan(
        name=str(source.path),
        onnx=typed(source, precision, runtime=loaded.flavour.runtime, strongly=loaded.is_strongly_typed),
        precision=precision,
        profile=_profile(source, options.batch),
        targets=targets,
        tuning=options.tuning,
    )
    start = time.perf_counter()
    engine = build_engine(loaded, plan, output)
    seconds = time.perf_counter() - start
    output.say(f"Engine: {precision}, {', '.join(targets)}, {len(engine) / 1e6:.1f} MB, built in {seconds:.1f} s")
    entry, files = _described(_entry(loaded, plan, engine, seconds), engine, _layers(loaded, plan, engine, output))
    return signed(entry, hashlib.sha256(source.content).hexdigest(), output), files


def _layers(loaded: Loaded, plan: Plan, engine: bytes, output: Output) -> bytes | None:
    """What TensorRT says of the engine's layers, for ``inspect``; None where it does not, or the engine's file does."""
    if not loaded.flavour.autotunes:
        return None
    try:
        return ask_inspector(loaded, engine, output.detail, host_code=plan.tuning.version_compatible)
    except (InputError, MissingCapabilityError) as error:  # the engine is built, which took minutes
        output.warn(f"{error}; `inspect` will not show its layers")
        return None


def _described(entry: EngineEntry, engine: bytes, layers: bytes | None) -> tuple[EngineEntry, dict[str, bytes]]:
    """``entry`` with its ``layers``, and both files by path."""
    files = {entry.file.path: engine}
    if layers is None:
        return entry, files
    inspected = file_entry(entry.file.path.removesuffix(_ENGINE) + _LAYERS, layers)
    return dataclasses.replace(entry, inspected=inspected), {**files, inspected.path: layers}


def typed(source: Source, precision: str, *, runtime: str, strongly: bool) -> bytes:
    """The ONNX that an engine of ``precision`` is built from, by ``runtime``, which is ``strongly`` typed or not.

    A network that was exported with rewrites gets those that suit the runtime; the rest is as given, or converted.
    Raises as `unetsharp.export.half.for_strong_typing`.
    """
    from unetsharp_engines.rewrites import finished, tuned

    model = tuned(runtime, source.model) if source.precision == "fp32" else source.model
    if precision != source.precision or (precision == "int8" and strongly):
        from unetsharp.export.half import for_strong_typing  # loads all that judges a network

        model = for_strong_typing(model, source.info)
    built_from = finished(runtime, model)
    return source.content if built_from is source.model else bytes(built_from.SerializeToString())


def _profile(source: Source, batch: tuple[int, int, int]) -> Profile:
    """Input shapes for ``batch``; a free side becomes the network's tile, for which it is meant."""
    fixed, _, *sides = source.input_shape
    if fixed is not None and batch != (fixed,) * 3:
        raise InputError(f"{source.path}: exported for batches of {fixed}; give --batch {fixed},{fixed},{fixed}")
    height, width = (side or source.info.tile for side in sides)
    smallest, best, largest = ((n, 3, height, width) for n in batch)
    return Profile(min=smallest, opt=best, max=largest)


def _entry(loaded: Loaded, plan: Plan, engine: bytes, seconds: float) -> EngineEntry:
    name = f"{loaded.flavour.runtime}-{loaded.version}-{machine.os_and_arch()}-{'+'.join(plan.targets)}{_ENGINE}"
    return EngineEntry(
        file=file_entry(name, engine),
        runtime=loaded.flavour.runtime,
        version=loaded.version,
        cuda=loaded.cuda,
        targets=plan.targets,
        platform=machine.os_and_arch(),
        profile={"min": plan.profile.min, "opt": plan.profile.opt, "max": plan.profile.max},
        options={name: value for name, value in plan.tuning.asked().items() if name in _TOLD},
        seconds=round(seconds, 2),
        gpu=machine.gpus()[0].name if loaded.flavour.autotunes else None,
        version_compatible=plan.tuning.version_compatible,
        ampere_plus=plan.tuning.hardware_compatible,
        layers=layer_precisions(parse_onnx(plan.onnx, Path(plan.name))),
    )


def _write(
    root: Path, source: Source, options: BuildOptions, engines: tuple[EngineEntry, ...], files: dict[str, bytes]
) -> Bundle:
    precision = _precision(source, options) if engines else source.precision
    manifest = Manifest(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        tool_version=__version__,
        info=source.info,
        precision=precision,
        onnx=file_entry(_ONNX_FILE, source.content),
        engines=engines,
        layers=layer_precisions(source.model),
        quantization=quantization_facts(source.model),
    )
    return write_bundle(root, manifest, {_ONNX_FILE: source.content, **files})
