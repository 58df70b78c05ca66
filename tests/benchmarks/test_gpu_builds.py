"""What the scripts for a GPU ask of each TensorRT, from 8.6 to 11: nothing that its bindings do not take."""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import int8_placements
import rewrites_tensorrt
from gpu_engine import Engines
from support.fake_cuda import Gpu
from support.fake_tensorrt import FakeContext, FakeEngine, install
from support.strict_tensorrt import VERSIONS, Log, strict_tensorrt
from support.tiny_onnx import tiny_onnx
from unetsharp.build.flavours import TENSORRT, Loaded
from unetsharp_engines.quantization import place, quantize
from unetsharp_engines.rewrites.graph import Graph

VERSIONS = [version for version in VERSIONS if "rtx" not in version]
WITHOUT_TYPES = "tensorrt 8.6"


class Builder:
    """Builds."""

    def __init__(self, log: Any) -> None:
        pass

    def build_serialized_network(self, network: Any, config: Any) -> bytes:
        return b"engine"


class Refusing(Builder):
    """Builds nothing."""

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        return None


class Network:
    """Has one input, of 64² pixels."""

    def get_input(self, index: int) -> Any:
        return type("Tensor", (), {"shape": (1, 3, 64, 64)})()


class Parser:
    """Keeps what it is given."""

    given: list[bytes] = []  # noqa: RUF012 - a test empties it

    def __init__(self, network: Any, log: Any) -> None:
        pass

    def parse(self, model: bytes) -> bool:
        self.given.append(model)
        return True


class TimingCache:
    """Holds timings."""

    def serialize(self) -> bytes:
        return b"timings"


def loaded_of(which: str, monkeypatch: pytest.MonkeyPatch, **doubles: Any) -> tuple[Loaded, Log]:
    Parser.given.clear()
    standing = {"Builder": Builder, "ITimingCache": TimingCache, "OnnxParser": Parser, "INetworkDefinition": Network}
    trt, log = strict_tensorrt(which, **(standing | doubles))
    loaded = Loaded(flavour=TENSORRT, trt=trt)
    monkeypatch.setattr("unetsharp.build.flavours.load", lambda _: loaded)
    return loaded, log


def flags(log: Log) -> set[str]:
    return {flag.name for name, (flag,) in ((n, a) for n, a in log if n == "set_flag")} & {"FP16", "INT8"}


@pytest.fixture
def quantized() -> onnx.ModelProto:
    model = tiny_onnx()
    placement = place(Graph(model))
    return quantize(model, placement, dict.fromkeys(placement.tensors, 8.0))


def types_of(model: bytes) -> set[int]:
    return {tensor.data_type for tensor in onnx.load_model_from_string(model).graph.initializer}


@pytest.mark.parametrize("which", VERSIONS)
@pytest.mark.parametrize("name", ["tail-less", "int8"])
def test_engines_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantized: onnx.ModelProto, which: str, name: str
) -> None:
    _, log = loaded_of(which, monkeypatch)
    onnx.save(quantized if name == "int8" else tiny_onnx(), tmp_path / f"{name}.onnx")
    rewrites_tensorrt.build(rewrites_tensorrt.parser().parse_args(["build", str(tmp_path), name]))
    assert (tmp_path / f"{name}.plan").read_bytes() == b"engine"
    assert (tmp_path / "timing.cache").read_bytes() == b"timings"
    assert ("builder_optimization_level", 1) in log
    by_flags = {"FP16", "INT8"} if name == "int8" else {"FP16"}
    assert flags(log) == (by_flags if which == WITHOUT_TYPES else set())
    (given,) = Parser.given
    has_half = onnx.TensorProto.FLOAT16 in types_of(given)
    assert has_half is (name == "int8" and which != WITHOUT_TYPES)


@pytest.mark.parametrize("which", VERSIONS)
@pytest.mark.parametrize("name", ["float", "ours"])
def test_placements_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantized: onnx.ModelProto, which: str, name: str
) -> None:
    loaded, log = loaded_of(which, monkeypatch, Builder=Refusing)
    onnx.save(tiny_onnx() if name == "float" else quantized, tmp_path / f"{name}.onnx")

    class Silent(loaded.trt.ILogger):  # type: ignore[misc]
        errors = ("no kernel",)

        def log(self, severity: Any, message: str) -> None:
            pass

    line, cache = int8_placements._built(
        loaded, loaded.trt.Builder(Silent()), Silent(), tmp_path / f"{name}.onnx", b"earlier timings"
    )
    assert (line["result"], line["errors"], cache) == ("refused", ("no kernel",), b"earlier timings")
    by_flags = {"FP16"} if name == "float" else {"FP16", "INT8"}
    assert flags(log) == (by_flags if which == WITHOUT_TYPES else set())
    assert (onnx.TensorProto.FLOAT16 in types_of(Parser.given[0])) is (which != WITHOUT_TYPES)


@pytest.mark.parametrize("which", VERSIONS)
def test_layers_are_told_and_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    install(Gpu(), monkeypatch, most=2, tensorrt_version=which)
    monkeypatch.setattr(sys.modules["tensorrt"], "IProfiler", type("IProfiler", (), {}), raising=False)
    monkeypatch.setattr(rewrites_tensorrt, "LAYERS_AT", 2)

    class Inspector:
        def get_engine_information(self, how: Any) -> str:
            return '{"Layers": [{"Name": "conv\x1ffirst", "LayerType": "CaskConvolution"}, "a name alone"]}'

    run = FakeContext._run

    def timed(context: FakeContext) -> None:
        run(context)
        if hasattr(context, "profiler"):
            context.profiler.report_layer_time("conv\x1ffirst", 0.5)

    monkeypatch.setattr(FakeContext, "_run", timed)
    monkeypatch.setattr(FakeEngine, "create_engine_inspector", lambda _: Inspector(), raising=False)
    np.savez(tmp_path / "reference.npz", image=np.zeros((2, 3, 64, 64), np.float32))
    (tmp_path / "tail-less.plan").write_bytes(b"taps half shared")
    with Engines([tmp_path / "tail-less.plan"]) as engines:
        told = engines.runner("tail-less", np.zeros((2, 3, 64, 64), np.float32)).layers(runs=3)
    assert told == [
        {"Name": "conv\x1ffirst", "LayerType": "CaskConvolution", "ms": 0.5},
        {"Name": "a name alone", "ms": None},
    ]
    rewrites_tensorrt.layers(argparse.Namespace(work=tmp_path, names=["tail-less", "plain"]))
    assert '"CaskConvolution": {' in (tmp_path / "layers.json").read_text()
