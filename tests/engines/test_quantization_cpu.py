"""INT8 for ONNX Runtime on a CPU: unsigned activations, a pair behind each convolution, and that it fuses all of it."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from support.networks import exported, random_network
from support.small_graphs import SmallGraph
from support.tiny_onnx import run_onnx
from unetsharp_engines.contract import INPUT_NAME
from unetsharp_engines.quantization import Calibration, Placement, place_for_cpu, quantize, threshold
from unetsharp_engines.quantization.cpu import fitting_scale, int32_bias
from unetsharp_engines.rewrites import DEFAULT, rewrite
from unetsharp_engines.rewrites.graph import Graph


def int8(model: onnx.ModelProto, images: np.ndarray) -> tuple[onnx.ModelProto, Placement]:
    placement = place_for_cpu(Graph(model))
    calibration = Calibration(model, placement.tensors, threads=1)
    calibration.feed(images)
    thresholds = {name: threshold(h, "minmax") for name, h in calibration.histograms.items()}
    return quantize(model, placement, thresholds), placement


def images_of(side: int) -> np.ndarray:
    return np.random.default_rng(3).random((1, 3, side, side)).astype(np.float32)


def small() -> onnx.ModelProto:
    graph = SmallGraph()
    x = graph.op("Relu", graph.conv(INPUT_NAME, 3, 8, "first"), name="first_relu")
    y = graph.op("Relu", graph.conv(x, 8, 8, "a"), name="a_relu")
    z = graph.mish(graph.conv(y, 8, 8, "b"))
    return graph.model(graph.conv(graph.op("Add", z, x), 8, 6, "head"))


def operations(model: onnx.ModelProto, folder: Path) -> list[str]:
    """What ONNX Runtime makes of it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


def test_what_is_never_negative_starts_at_zero_and_the_rest_is_centred():
    quantized, placement = int8(small(), images_of(8))
    results = {layer.name: layer.result for layer in placement.layers}
    assert results["a"].startswith("a_relu")
    assert results["b"].startswith("b.")
    assert {name.split(".")[0] for name in placement.nonnegative} == {"first_relu", "a_relu"}
    graph = Graph(quantized)
    points = {
        n.input[0].split(".")[0]: graph.constants[n.input[2]].item()
        for n in graph.nodes
        if n.op_type == "QuantizeLinear"
    }
    assert points == {"first_relu": 0, "a_relu": 0, "b": 128}


def test_every_convolution_in_int8_becomes_an_integer_one(tmp_path: Path):
    quantized, placement = int8(small(), images_of(8))
    made = operations(quantized, tmp_path)
    assert made.count("QLinearConv") == len(placement.layers) == 2
    assert made.count("Relu") <= 1  # the float first convolution's; the other is in the zero point


def test_the_edge_network_as_onnx_runtime_has_it(tmp_path: Path):
    model, _ = rewrite(exported(random_network("test_resnet", 16), 64, 64), DEFAULT["onnxruntime"])
    quantized, placement = int8(model, images_of(64))
    onnx.checker.check_model(quantized, full_check=True)
    assert operations(quantized, tmp_path).count("QLinearConv") == len(placement.layers)
    wanted, seen = run_onnx(model, images_of(64)), run_onnx(quantized, images_of(64))
    assert np.corrcoef(wanted.ravel(), seen.ravel())[0, 1] > 0.98


def test_layers_given_back_to_float_have_no_pairs():
    model = small()
    placement = place_for_cpu(Graph(model))
    quantized = quantize(model, placement, dict.fromkeys(placement.tensors, 1.0), floats=["a", "b"])
    assert not [node for node in quantized.graph.node if node.op_type.endswith("Linear")]
    np.testing.assert_array_equal(run_onnx(quantized, images_of(8)), run_onnx(model, images_of(8)))


def test_a_bias_far_larger_than_the_weights_still_fits():
    weight = np.array([1.0, 1e-12, 0.0, 0.0], np.float32).reshape(4, 1, 1, 1)
    bias = np.array([0.5, 300.0, 0.25, 0.0], np.float32)
    scale = fitting_scale(weight, np.array([1 / 127, 1e-12 / 127, 1.0, 1.0], np.float32), bias, 0.01)
    levels, steps = int32_bias(bias, 0.01, scale)
    assert levels.dtype == np.int32
    assert np.abs(levels.astype(np.int64)).max() <= 2**30
    assert levels * steps.astype(np.float64) == pytest.approx(bias, rel=1e-3)
    assert (scale > 0).all()
