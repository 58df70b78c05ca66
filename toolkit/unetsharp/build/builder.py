"""One builder for TensorRT and TensorRT-RTX: an ONNX in, a serialized engine out."""

import concurrent.futures
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from unetsharp.build.flavours import PORTABLE_OPSET, Loaded
from unetsharp.build.plugin import holds_plugin, provide_plugin
from unetsharp.build.progress import PhaseTracker, monitor
from unetsharp.build.source import read_file
from unetsharp.cli.output import Output
from unetsharp_engines.contract import INPUT_NAME
from unetsharp_engines.errors import InputError, MissingCapabilityError
from unetsharp_engines.files import replacing

if TYPE_CHECKING:
    from unetsharp_engines.tensorrt_api import (
        Builder,
        IBuilderConfig,
        IHostMemory,
        INetworkDefinition,
        OnnxParser,
        ParserError,
        TensorRt,
    )

__all__ = ["LEVELS", "Plan", "Profile", "Tuning", "build_engine", "parser_error", "recording_log", "started"]

_T = TypeVar("_T")

LEVELS = range(6)
"""Builder optimization levels that TensorRT knows."""

_TIMINGS = re.compile(r"(Loaded|Serialized) (\d+) timing cache entries")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Smallest, best and largest input [N, 3, H, W] that an engine takes: it is fastest at ``opt``."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How TensorRT goes about it. Raises InputError for values that no build could use."""

    level: int | None = None
    """One of `LEVELS`; None is TensorRT's own default."""
    timing_cache: Path | None = None
    """Where kernel timings are kept from build to build."""
    workspace: int | None = None
    """Most memory that a kernel may use beside its tensors, MB; None is all that the GPU has."""
    time_limit: float | None = None
    """Seconds after which the build is given up; needs a TensorRT with `Loaded.can_be_stopped`."""
    version_compatible: bool = False
    """Whether the engine is to run on later TensorRT versions too."""
    hardware_compatible: bool = False
    """Whether the engine is to run on every GPU from sm80 on (AMPERE_PLUS)."""

    def __post_init__(self) -> None:
        """Check what can be checked without TensorRT."""
        if self.level is not None and self.level not in LEVELS:
            raise InputError(f"--level {self.level}: TensorRT knows {LEVELS[0]} to {LEVELS[-1]}")
        if self.timing_cache is not None and self.timing_cache.is_dir():
            raise InputError(f"--timing-cache {self.timing_cache}: a folder; name a file")
        if self.workspace is not None and self.workspace < 1:
            raise InputError(f"--workspace {self.workspace}: wanted megabytes, such as 1024")
        if self.time_limit is not None and not self.time_limit > 0:
            raise InputError(f"--time-limit {self.time_limit:g}: wanted seconds, such as 600")

    def asked(self) -> dict[str, Any]:
        """What was set, by the option's name without its dashes."""
        return {name.replace("_", "-"): value for name, value in vars(self).items() if value}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to build."""

    name: str
    """What messages call the network."""
    onnx: bytes
    precision: str
    """``fp32``, ``fp16`` or ``int8``: what the tensors of ``onnx`` are."""
    profile: Profile
    targets: tuple[str, ...]
    tuning: Tuning = field(default_factory=Tuning)


def build_engine(loaded: Loaded, plan: Plan, output: Output) -> bytes:
    """Build ``plan`` with the TensorRT in ``loaded``; its progress goes to ``output``, its log to ``-v``.

    Ctrl-C stops TensorRT at its next step and is raised again as KeyboardInterrupt. Raises InputError, with the
    node's name or TensorRT's own reason, where the network cannot be parsed or built, or not within its time limit;
    MissingCapabilityError where TensorRT itself does not start, or takes no kernel of ours and should.
    """
    if holds_plugin(plan.onnx):
        provide_plugin(loaded)
    log = recording_log(loaded.trt, output.detail)
    builder = started(loaded, loaded.trt.Builder, log)
    network = builder.create_network(loaded.network_flags())
    _parse(loaded, plan, network, log)
    config = _config(loaded, plan, builder)
    with output.progress(f"{loaded.label} builds", total=100, unit="%") as advance:
        tracker = PhaseTracker(advance)
        watch = _watch(loaded, config, tracker)
        engine = _run(lambda: builder.build_serialized_network(network, config), tracker, plan.tuning.time_limit)
        del watch
    if engine is None and tracker.is_cancelled:
        raise InputError(
            f"{plan.name}: not built within --time-limit {plan.tuning.time_limit:g}; allow more, or --level 1"
        )
    if engine is None:
        raise InputError(f"{plan.name}: {loaded.label} could not build it: {log.last_error or 'it gave no reason'}")
    _keep_timings(plan, config, log, output)
    return bytes(engine)


def started(loaded: Loaded, make: Callable[[Any], _T], log: Any) -> _T:
    """The ``Builder`` or ``Runtime`` that ``make`` makes. MissingCapabilityError where TensorRT does not start."""
    try:
        return make(log)
    except TypeError as error:  # what its bindings raise where the library made none
        reason = log.last_error or _one_line(str(error))
        raise MissingCapabilityError(f"{loaded.label} does not start here: {reason}") from error


def _parse(loaded: Loaded, plan: Plan, network: "INetworkDefinition", log: Any) -> None:
    parser = loaded.trt.OnnxParser(network, log)
    if not parser.parse(plan.onnx):
        raise InputError(f"{plan.name}: {loaded.label} cannot take it: {_parser_errors(parser, plan.onnx)}")


def _parser_errors(parser: "OnnxParser", content: bytes) -> str:
    """The parser's first error with the node's name, how many more there are, and what to do."""
    import onnx

    model = onnx.ModelProto.FromString(content)
    first = parser_error(parser.get_error(0), model.graph.node)  # a failed parse has at least one
    more = f" (and {parser.num_errors - 1} more)" if parser.num_errors > 1 else ""
    newer = any(used.domain in ("", "ai.onnx") and used.version > PORTABLE_OPSET for used in model.opset_import)
    advice = f"export it with --opset {PORTABLE_OPSET}" if newer else "export it again with this version of unetsharp"
    return f"{first}{more}; {advice}, which every TensorRT from 8.6 on parses"


def parser_error(error: "ParserError", nodes: Any) -> str:
    """An ``error`` of TensorRT's ONNX parser in one line, with the one of the graph's ``nodes`` that it is about."""
    place = f"node {nodes[error.node()].name!r} ({nodes[error.node()].op_type}): " if error.node() >= 0 else ""
    return place + _one_line(error.desc())


def _config(loaded: Loaded, plan: Plan, builder: "Builder") -> "IBuilderConfig":
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT_NAME, plan.profile.min, plan.profile.opt, plan.profile.max)
    config.add_optimization_profile(profile)
    if plan.precision == "fp32":
        config.clear_flag(loaded.trt.BuilderFlag.TF32)  # on by default: fp32 with a 10-bit mantissa
    elif not loaded.is_strongly_typed:
        flags = loaded.trt.BuilderFlag.__members__
        config.set_flag(flags["FP16"])
        if plan.precision == "int8":
            config.set_flag(flags["INT8"])
    config.profiling_verbosity = loaded.trt.ProfilingVerbosity.DETAILED  # the engine tells its layers: `inspect`
    if loaded.flavour.autotunes:
        config.set_tactic_sources(loaded.tactic_sources())
    _serve_contexts(loaded.trt, config)
    _tune(loaded, plan.tuning, config)
    if not loaded.flavour.autotunes:
        _set_targets(loaded.trt, config, plan.targets)
    return config


def _serve_contexts(trt: "TensorRt", config: "IBuilderConfig") -> None:
    """Let several execution contexts share the engine's one profile, and let each be captured in a CUDA graph."""
    sharing = trt.PreviewFeature.__members__.get("PROFILE_SHARING_0806")
    if sharing is not None and not config.get_preview_feature(sharing):  # TensorRT 10 knows it, and has it on for good
        config.set_preview_feature(sharing, True)
    if (required := trt.BuilderFlag.__members__.get("REQUIRE_USER_ALLOCATION")) is not None:
        config.set_flag(required)


def _tune(loaded: Loaded, tuning: Tuning, config: "IBuilderConfig") -> None:
    trt = loaded.trt
    if tuning.level is not None:
        config.builder_optimization_level = tuning.level
    if tuning.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, tuning.workspace * 1_000_000)
    if tuning.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if tuning.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if tuning.timing_cache is not None:
        stored = read_file(tuning.timing_cache) if tuning.timing_cache.is_file() else b""
        if not config.set_timing_cache(config.create_timing_cache(stored), False):
            raise InputError(
                f"--timing-cache {tuning.timing_cache}: made by another GPU or {loaded.flavour.name} version"
            )


def _set_targets(trt: Any, config: Any, targets: tuple[str, ...]) -> None:
    """As TensorRT-RTX alone has it."""
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(trt.ComputeCapability.__members__[target.upper()], index)


def _watch(loaded: Loaded, config: Any, tracker: PhaseTracker) -> Any:
    """Attach a progress monitor where this TensorRT has them: not 8.6. Keep the result until the build has ended."""
    if not loaded.can_be_stopped:
        return None
    config.progress_monitor = watch = monitor(loaded.trt, tracker)
    return watch


def _run(
    build: "Callable[[], IHostMemory | None]", tracker: PhaseTracker, seconds: float | None
) -> "IHostMemory | None":
    """Run ``build`` on a thread of its own, so that Ctrl-C reaches this one while TensorRT works.

    After so many ``seconds`` it is told to stop.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(build)
        try:
            concurrent.futures.wait([future], seconds)
            if not future.done():
                tracker.cancel()
            return future.result()
        except KeyboardInterrupt:
            tracker.cancel()
            raise


def _keep_timings(plan: Plan, config: "IBuilderConfig", log: Any, output: Output) -> None:
    path = plan.tuning.timing_cache
    if path is None:
        return
    content = bytes(config.get_timing_cache().serialize())
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:  # the engine is built, which took minutes
        output.warn(f"--timing-cache {path}: cannot be written there ({error.strerror}); the timings are not kept")
        return
    known, kept = log.timings.get("Loaded", 0), log.timings.get("Serialized", 0)
    output.say(f"Timing cache: {known} kernels timed before, {max(kept - known, 0)} timed now, kept in {path}")


def recording_log(trt: Any, tell: Callable[[str], None]) -> Any:
    """TensorRT's log: warnings and errors are told as single lines; the first error is kept for the one line."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # the base is known at run time only
        """Keeps `last_error`, and in `timings` how many timing cache entries were loaded and serialized."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = ""
            self.timings: dict[str, int] = {}

        def log(self, severity: Any, msg: str) -> None:
            if entries := _TIMINGS.search(msg):
                self.timings[entries.group(1)] = int(entries.group(2))
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last_error = self.last_error or _one_line(msg)
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR, trt.ILogger.WARNING):
                tell(f"{trt.__name__}: {_one_line(msg)}")

    return Logger()


def _one_line(text: str) -> str:
    return " ".join(text.split())
