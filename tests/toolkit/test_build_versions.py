"""What the builder tells each TensorRT: nothing that the version does not know, and all that it needs."""

from pathlib import Path
from typing import Any

import pytest

from support.strict_tensorrt import VERSIONS, Log, strict_tensorrt
from support.tiny_onnx import tiny_onnx
from unetsharp.build.builder import Plan, Profile, Tuning, build_engine
from unetsharp.build.flavours import RTX, TENSORRT, Loaded
from unetsharp.cli.output import Output, Verbosity
from unetsharp.inspection.parsing import parse_problems
from unetsharp_engines.errors import InputError

SHAPE = (1, 3, 64, 64)
QUIET = Output(verbosity=Verbosity.QUIET)
AUTOTUNING = [which for which in VERSIONS if "rtx" not in which]
WITHOUT_TYPES = "tensorrt 8.6"
"""The only one that takes precision by builder flags."""


class Builder:
    """Builds."""

    def __init__(self, log: Any) -> None:
        self._log = log

    def build_serialized_network(self, network: Any, config: Any) -> bytes:
        return b"engine"


class Failing(Builder):
    """Says why it builds nothing."""

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        self._log.log(self._log.ERROR, "no\n kernel")
        return None


class OldConfig:
    """Shares no profile unless told to; later versions' always do."""

    def get_preview_feature(self, feature: Any) -> bool:
        return False


class TimingCache:
    """Holds timings."""

    def serialize(self) -> bytes:
        return b"timings"


class Parser:
    """Refuses what it is given."""

    num_errors = 2

    def __init__(self, network: Any, log: Any) -> None:
        pass

    def parse(self, model: bytes) -> bool:
        return False


class Problem:
    """About the second node."""

    def node(self) -> int:
        return 1

    def desc(self) -> str:
        return "is\n unknown"


def loaded_of(which: str, **doubles: Any) -> tuple[Loaded, Log]:
    standing: dict[str, Any] = {"Builder": Builder, "ITimingCache": TimingCache}
    if which == WITHOUT_TYPES:
        standing["IBuilderConfig"] = OldConfig
    trt, log = strict_tensorrt(which, **(standing | doubles))
    return Loaded(flavour=RTX if "rtx" in which else TENSORRT, trt=trt), log


def plan_of(loaded: Loaded, tuning: Tuning, precision: str = "fp16") -> Plan:
    targets = ("sm86", "sm120") if loaded.flavour is RTX else ("sm90",)
    profile = Profile(min=SHAPE, opt=SHAPE, max=SHAPE)
    onnx = tiny_onnx().SerializeToString()
    return Plan(name="it", onnx=onnx, precision=precision, profile=profile, targets=targets, tuning=tuning)


def told(which: str, tuning: Tuning, precision: str = "fp16") -> tuple[Any, Log]:
    """The module, and everything that its objects were told."""
    loaded, log = loaded_of(which)
    assert build_engine(loaded, plan_of(loaded, tuning, precision), QUIET) == b"engine"
    return loaded.trt, log


def test_all_that_matter_are_recorded() -> None:
    """8.6 and TensorRT-RTX have run; JetPack 6 has 10.3, JetPack 7 has 10.13; 11.4 is the newest."""
    assert VERSIONS == ["tensorrt 10.13", "tensorrt 10.3", "tensorrt 11.4", "tensorrt 8.6", "tensorrt-rtx 1.7"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("which", VERSIONS)
def test_no_version_is_told_what_it_does_not_know(which: str, precision: str) -> None:
    trt, log = told(which, Tuning(), precision)
    assert ("profiling_verbosity", trt.ProfilingVerbosity.DETAILED) in log
    flags = {flag.name for name, (flag,) in only(log, "set_flag")}
    by_flags = {"fp32": set(), "fp16": {"FP16"}, "int8": {"FP16", "INT8"}}[precision]
    assert flags & {"FP16", "INT8"} == (by_flags if which == WITHOUT_TYPES else set())
    assert (("clear_flag", (trt.BuilderFlag.TF32,)) in log) is (precision == "fp32")
    (network,) = only(log, "create_network")
    kinds = trt.NetworkDefinitionCreationFlag.__members__
    wanted = kinds["EXPLICIT_BATCH"] if which == WITHOUT_TYPES else kinds["STRONGLY_TYPED"]
    assert network == ("create_network", (1 << wanted,))
    assert ("progress_monitor" in dict(log)) is (which != WITHOUT_TYPES)


def only(log: Log, *names: str) -> Log:
    return [entry for entry in log if entry[0] in names]


@pytest.mark.parametrize("which", AUTOTUNING)
def test_all_tuning_reaches_tensorrt(which: str, tmp_path: Path) -> None:
    cache = tmp_path / "timings"
    tuning = Tuning(level=2, timing_cache=cache, workspace=512, version_compatible=True, hardware_compatible=True)
    trt, log = told(which, tuning)
    assert ("builder_optimization_level", 2) in log
    assert ("set_memory_pool_limit", (trt.MemoryPoolType.WORKSPACE, 512_000_000)) in log
    assert ("hardware_compatibility_level", trt.HardwareCompatibilityLevel.AMPERE_PLUS) in log
    assert ("set_flag", (trt.BuilderFlag.VERSION_COMPATIBLE,)) in log
    assert cache.read_bytes() == b"timings"
    _, log = told(which, tuning)
    assert ("create_timing_cache", (b"timings",)) in log


def test_timings_that_cannot_be_kept_cost_no_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    told("tensorrt 8.6", Tuning(timing_cache=tmp_path / "file" / "timings"))
    assert "timings: cannot be written there" in capsys.readouterr().err


@pytest.mark.parametrize("which", AUTOTUNING)
def test_an_engine_needs_no_cudnn_and_shares_its_profile(which: str) -> None:
    trt, log = told(which, Tuning())
    sources = 1 << trt.TacticSource.EDGE_MASK_CONVOLUTIONS | 1 << trt.TacticSource.JIT_CONVOLUTIONS
    assert ("set_tactic_sources", (sources,)) in log
    shared = [(feature.name, value) for _, (feature, value) in only(log, "set_preview_feature")]
    assert shared == ([("PROFILE_SHARING_0806", True)] if which == "tensorrt 8.6" else [])


def test_tensorrt_rtx_is_told_its_gpus_and_made_fit_for_cuda_graphs() -> None:
    trt, log = told("tensorrt-rtx 1.7", Tuning())
    assert ("set_flag", (trt.BuilderFlag.REQUIRE_USER_ALLOCATION,)) in log
    assert ("set_compute_capability", (trt.ComputeCapability.SM120, 1)) in log
    assert not only(log, "set_tactic_sources")


@pytest.mark.parametrize("which", VERSIONS)
def test_a_build_that_fails_says_why(which: str) -> None:
    loaded, _ = loaded_of(which, Builder=Failing)
    with pytest.raises(InputError, match=r"could not build it: no kernel$"):
        build_engine(loaded, plan_of(loaded, Tuning()), QUIET)


@pytest.mark.parametrize("which", VERSIONS)
def test_what_a_parser_refuses_is_told_with_the_node(which: str) -> None:
    loaded, _ = loaded_of(which, OnnxParser=Parser, ParserError=Problem)
    model = tiny_onnx()
    node = f"node '{model.graph.node[1].name}' ({model.graph.node[1].op_type}): is unknown"
    with pytest.raises(InputError) as caught:
        build_engine(loaded, plan_of(loaded, Tuning()), QUIET)
    assert f"{node} (and 1 more); export it again" in str(caught.value)
    assert parse_problems(loaded, model.SerializeToString()) == [node, node]


class TestTheDoubles:
    """Refuse what the real ones refuse."""

    @pytest.mark.parametrize("which", ["tensorrt 11.4", "tensorrt-rtx 1.7"])
    @pytest.mark.parametrize("flag", ["FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"])
    def test_flags_that_were_removed(self, which: str, flag: str) -> None:
        loaded, _ = loaded_of(which)
        with pytest.raises(AttributeError, match=flag):
            getattr(loaded.trt.BuilderFlag, flag)

    def test_what_else_11_removed(self) -> None:
        trt = loaded_of("tensorrt 11.4")[0].trt
        config = trt.Builder(logger(trt)).create_builder_config()
        with pytest.raises(AttributeError, match="has no int8_calibrator"):
            config.int8_calibrator = None
        for holder, name in (
            (trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH"),
            (trt.PreviewFeature, "PROFILE_SHARING_0806"),
            (trt.TacticSource, "CUDNN"),
        ):
            assert name not in holder.__members__

    @pytest.mark.parametrize("which", VERSIONS)
    def test_calls_that_are_not_accepted(self, which: str) -> None:
        trt = loaded_of(which)[0].trt
        builder = trt.Builder(logger(trt))
        config = builder.create_builder_config()
        for call in (
            trt.Builder,
            lambda: trt.Builder("a log"),
            lambda: builder.create_network(0, 0),
            lambda: builder.create_network(flag=0),
            lambda: config.set_flag(7),
            lambda: config.set_flag(trt.MemoryPoolType.WORKSPACE),
            lambda: config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
            lambda: config.set_timing_cache(config.create_timing_cache("text"), False),
        ):
            with pytest.raises(TypeError, match="takes"):
                call()
        with pytest.raises(AttributeError, match="not 'much'"):
            config.builder_optimization_level = "much"
        with pytest.raises(AttributeError, match="not 3"):
            config.num_optimization_profiles = 3

    @pytest.mark.parametrize("which", VERSIONS)
    def test_a_logger_that_does_not_log(self, which: str) -> None:
        trt = loaded_of(which)[0].trt
        with pytest.raises(AssertionError, match="log"):
            type("Silent", (trt.ILogger,), {})


def logger(trt: Any) -> Any:
    return type("Log", (trt.ILogger,), {"__init__": lambda _: None, "log": lambda *_: None})()
