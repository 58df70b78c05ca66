"""What the builder tells each TensorRT: nothing that the version does not know, and all that it needs."""

from pathlib import Path
from typing import Any

import pytest

from support.strict_tensorrt import strict_tensorrt
from support.tiny_onnx import tiny_onnx
from unetsharp.build.builder import Plan, Profile, Tuning, build_engine
from unetsharp.build.flavours import RTX, TENSORRT, Loaded
from unetsharp.cli.output import Output, Verbosity

SHAPE = (1, 3, 64, 64)
VERSIONS = {"tensorrt 8.6": TENSORRT, "tensorrt 10.13": TENSORRT, "tensorrt-rtx 1.7": RTX}


def told(which: str, tuning: Tuning, precision: str = "fp16") -> tuple[Any, list[tuple[str, Any]]]:
    """The module's enums, and everything that its builder, parser and config were told."""
    trt, log = strict_tensorrt(which)
    targets = ("sm86", "sm120") if VERSIONS[which] is RTX else ("sm90",)
    profile = Profile(min=SHAPE, opt=SHAPE, max=SHAPE)
    onnx = tiny_onnx().SerializeToString()
    plan = Plan(name="it", onnx=onnx, precision=precision, profile=profile, targets=targets, tuning=tuning)
    loaded = Loaded(flavour=VERSIONS[which], trt=trt)
    assert build_engine(loaded, plan, Output(verbosity=Verbosity.QUIET)) == b"engine"
    return trt, log


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("which", VERSIONS)
def test_no_version_is_told_what_it_does_not_know(which: str, precision: str) -> None:
    trt, log = told(which, Tuning(), precision)
    assert ("profiling_verbosity", trt.ProfilingVerbosity.DETAILED) in log
    flags = {value[0] for name, value in log if name == "set_flag"}
    typed_by_flags = which == "tensorrt 8.6"
    assert (trt.BuilderFlag.__members__.get("FP16") in flags) is (typed_by_flags and precision != "fp32")
    assert (trt.BuilderFlag.__members__.get("INT8") in flags) is (typed_by_flags and precision == "int8")


@pytest.mark.parametrize("which", ["tensorrt 8.6", "tensorrt 10.13"])
def test_all_tuning_reaches_tensorrt(which: str, tmp_path: Path) -> None:
    cache = tmp_path / "timings"
    tuning = Tuning(level=2, timing_cache=cache, workspace=512, version_compatible=True, hardware_compatible=True)
    trt, log = told(which, tuning)
    assert ("builder_optimization_level", 2) in log
    assert ("set_memory_pool_limit", (trt.MemoryPoolType.WORKSPACE, 512_000_000)) in log
    assert ("hardware_compatibility_level", trt.HardwareCompatibilityLevel.AMPERE_PLUS) in log
    assert ("set_flag", (trt.BuilderFlag.VERSION_COMPATIBLE,)) in log
    assert cache.read_bytes() == b"timings"


def test_timings_that_cannot_be_kept_cost_no_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    told("tensorrt 8.6", Tuning(timing_cache=tmp_path / "file" / "timings"))
    assert "timings: cannot be written there" in capsys.readouterr().err


def test_old_tensorrt_lets_contexts_share_the_profile_and_needs_no_cudnn() -> None:
    trt, log = told("tensorrt 8.6", Tuning())
    assert ("set_preview_feature", (trt.PreviewFeature.PROFILE_SHARING_0806, True)) in log
    sources = 1 << trt.TacticSource.EDGE_MASK_CONVOLUTIONS | 1 << trt.TacticSource.JIT_CONVOLUTIONS
    assert ("set_tactic_sources", (sources,)) in log
    assert ("network flags", 1 << trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH) in log


def test_tensorrt_rtx_is_told_its_gpus_and_made_fit_for_cuda_graphs() -> None:
    trt, log = told("tensorrt-rtx 1.7", Tuning())
    assert ("set_flag", (trt.BuilderFlag.REQUIRE_USER_ALLOCATION,)) in log
    assert ("set_compute_capability", (trt.ComputeCapability.SM120, 1)) in log
    assert not [name for name, _ in log if name == "set_tactic_sources"]
