"""A network that float16 would spoil: fails converted plainly, passes with the fewest blocks in float32."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from support.painted_folds import PAINTER_INFO
from support.painter_network import painted_folder, painter
from support.small_graphs import SmallGraph
from support.tiny_onnx import INFO, tiny_onnx
from unetsharp.cli.output import Output, Verbosity
from unetsharp.export.half import (
    Bounds,
    HalfReport,
    calibration_pictures,
    careful_fp16,
    for_strong_typing,
    sample_pictures,
)
from unetsharp.export.precision import precision_of, to_fp16
from unetsharp_engines.contract import INPUT_NAME
from unetsharp_engines.errors import GateFailedError, InputError
from unetsharp_engines.quantization import Calibration, place, quantize, threshold
from unetsharp_engines.quantization.calibration import session
from unetsharp_engines.quantization.rounding import spelled_out
from unetsharp_engines.rewrites.graph import Graph

GAIN = 200.0
"""Colours reach 200, times 1e3 in one channel: beyond float16's 65504."""


def logits(model: onnx.ModelProto, pictures: list[np.ndarray]) -> np.ndarray:
    runtime = session(spelled_out(model), 1)
    return np.concatenate([runtime.run(None, {"image": x})[0] for x in pictures])


def same_class(model: onnx.ModelProto, reference: onnx.ModelProto, pictures: list[np.ndarray]) -> float:
    a, b = (np.nan_to_num(logits(m, pictures)).argmax(axis=1) for m in (model, reference))
    return float((a == b).mean())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    return calibration_pictures(painted_folder(tmp_path_factory.mktemp("pannuke")), PAINTER_INFO, 256)


@pytest.fixture(scope="module")
def hard(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    return onnx.load(painter(tmp_path_factory.mktemp("hard") / "m.onnx", hard=True, gain=GAIN))


@pytest.fixture(scope="module")
def repaired(hard: onnx.ModelProto, pictures: list[np.ndarray]) -> tuple[onnx.ModelProto, HalfReport]:
    return careful_fp16(hard, pictures)


def test_the_hard_network_fails_plainly_and_passes_repaired(hard, repaired, pictures):
    assert same_class(to_fp16(hard), hard, pictures) < 0.9
    model, report = repaired
    assert precision_of(model) == "fp16"
    assert same_class(model, hard, pictures) >= 0.999
    assert report.agreement >= 0.999
    assert not report.plain_agreement >= 0.9


def test_only_what_meets_at_the_overflow_stays_in_float32(repaired):
    report = repaired[1]
    assert set(report.islands) == {"spreading", "gathering"}
    assert report.blocks == 4
    assert 0.0 < report.float32_share_of_macs < 0.5
    assert any(name.startswith("spreading") for name in report.near_overflow)
    assert max(report.near_overflow.values()) > 65504
    assert report.pictures == 4


def test_an_easy_network_has_no_islands(tmp_path: Path, pictures):
    model = onnx.load(painter(tmp_path / "m.onnx", hard=False))
    report = careful_fp16(model, pictures)[1]
    assert report.islands == ()
    assert report.near_overflow == {}
    assert report.agreement == report.plain_agreement >= 0.999


def test_weights_are_counted(tmp_path: Path, pictures):
    path = painter(tmp_path / "m.onnx", hard=False)
    model = onnx.load(path)
    (first,) = [t for t in model.graph.initializer if t.name == "first.weight"]
    values = onnx.numpy_helper.to_array(first).copy()
    values[3:5, 0, 0, 0] = 1e-6, 1e-9  # below full precision; below anything
    first.CopyFrom(onnx.numpy_helper.from_array(values, "first.weight"))
    weights = careful_fp16(model, pictures)[1].weights
    assert (weights.coarse, weights.zeroed, weights.too_large) == (2, 1, ())


def test_what_would_be_fp16_in_name_only_is_refused(tmp_path: Path, pictures):
    model = onnx.load(painter(tmp_path / "m.onnx", hard=True, gain=GAIN, kernel=3))  # "gathering" is most of it
    with pytest.raises(GateFailedError, match="use fp32"):
        careful_fp16(model, pictures)


def test_bounds_that_cannot_be_met_are_a_refusal(tmp_path: Path, pictures):
    model = onnx.load(painter(tmp_path / "m.onnx", hard=False))
    with pytest.raises(GateFailedError, match="use fp32"):
        careful_fp16(model, pictures, Bounds(max_difference=0.0, agreement=1.0))


def builds_for_two_gpus(model: onnx.ModelProto) -> bool:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'unetsharp[rtx]'")
    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    network = builder.create_network()
    assert trt.OnnxParser(network, log).parse(model.SerializeToString())
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("image", *[(1, 3, 256, 256)] * 3)
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 2
    for index, capability in enumerate((trt.ComputeCapability.SM86, trt.ComputeCapability.SM120)):
        config.set_compute_capability(capability, index)
    return builder.build_serialized_network(network, config) is not None


def test_a_repaired_network_builds_for_two_gpus(repaired):
    assert builds_for_two_gpus(repaired[0])


def test_pictures_of_a_size_beyond_the_patches_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="256×256"):
        calibration_pictures(tmp_path, PAINTER_INFO, 288)


@pytest.mark.parametrize(("batch", "wanted"), [("N", 1), (2, 2)])
def test_without_a_folder_three_tiles_of_a_slide_serve(batch: int | str, wanted: int):
    shapes = [x.shape for x in sample_pictures(tiny_onnx(batch=batch), INFO)]
    assert shapes == [(wanted, 3, 64, 64)] * 3


def test_beside_its_int8_layers_a_network_becomes_fp16_for_strong_typing(tmp_path: Path, pictures):
    model = onnx.load(painter(tmp_path / "m.onnx", hard=False))
    placement = place(Graph(model))
    calibration = Calibration(model, placement.tensors, threads=1)
    for x in pictures:
        calibration.feed(x)
    int8 = quantize(model, placement, {n: threshold(h, "minmax") for n, h in calibration.histograms.items()})
    typed = for_strong_typing(int8, PAINTER_INFO)
    assert precision_of(typed) == "int8"
    assert same_class(typed, int8, pictures) >= 0.99
    assert builds_for_two_gpus(typed)


def test_for_strong_typing_fp32_becomes_fp16_and_fp16_stays():
    half = for_strong_typing(tiny_onnx(), INFO)
    assert precision_of(half) == "fp16"
    assert for_strong_typing(half, INFO) is half


def test_tensorrt_rtx_convolves_in_integers_where_placement_says_so():
    """Read from the engine: what an INT8 convolution reads is int8."""
    from unetsharp.build.builder import Plan, Profile, build_engine
    from unetsharp.build.flavours import RTX, load
    from unetsharp.inspection.rtx_program import kernels_of

    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'unetsharp[rtx]'")
    graph = SmallGraph(side=64)
    x = graph.op("Relu", graph.conv(INPUT_NAME, 3, 64, "first"))
    x = graph.mish(graph.conv(graph.op("Relu", graph.conv(x, 64, 64, "a")), 64, 64, "b"))
    model = graph.model(graph.conv(x, 64, 6, "head"))
    placement = place(Graph(model))
    int8 = quantize(model, placement, dict.fromkeys(placement.tensors, 4.0))
    shape = (1, 3, 64, 64)
    plan = Plan(
        name="int8",
        onnx=to_fp16(int8).SerializeToString(),
        precision="int8",
        profile=Profile(min=shape, opt=shape, max=shape),
        targets=("sm86",),
    )
    kernels = kernels_of(build_engine(load(RTX), plan, Output(verbosity=Verbosity.QUIET)))
    quantizing = [kernel for kernel in kernels if kernel.precision == "int8"]
    assert len(quantizing) == len(placement.layers) == 2
    convolving = [kernel.read for kernel in kernels if kernel.kind == "convolution"]
    assert convolving.count(64 * 64 * 64) == 2  # a byte a value
