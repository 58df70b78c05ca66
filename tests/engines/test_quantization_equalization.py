"""Factors moved between layers: the same numbers bit for bit, and less noise in INT8."""

import numpy as np
import onnx
import pytest

from support.small_graphs import SmallGraph
from support.tiny_onnx import run_onnx
from unetsharp_engines.contract import INPUT_NAME
from unetsharp_engines.quantization import Calibration, Equalization, Sensitivity, place, threshold
from unetsharp_engines.rewrites.graph import Graph

IMAGES = np.random.default_rng(5).random((3, 3, 8, 8)).astype(np.float32)
FAR_APART = 10.0 ** np.array([-4, 3, 0, -2, 2, -3, 4, 1])


def framed() -> tuple[SmallGraph, str]:
    graph = SmallGraph()
    return graph, graph.op("Relu", graph.conv(INPUT_NAME, 3, 8, "first"))


def spread(graph: SmallGraph, name: str, factors: np.ndarray = FAR_APART) -> None:
    """Multiply what a convolution makes, channel by channel."""
    for part in ("weight", "bias"):
        values = graph._weights[f"{name}.{part}"]
        graph.replace(f"{name}.{part}", values * factors.reshape(-1, *[1] * (values.ndim - 1)))


def gather(graph: SmallGraph, name: str, offset: int = 0, factors: np.ndarray = FAR_APART) -> None:
    """Let the weights that read the channels make up for it."""
    weight = graph._weights[f"{name}.weight"].copy()
    weight[:, offset : offset + len(factors)] /= factors[:, None, None]
    graph.replace(f"{name}.weight", weight)


def equalized(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, int]]:
    equalization = Equalization(model, [layer.name for layer in place(Graph(model)).layers], threads=1)
    equalization.feed(IMAGES[:2])
    equalization.feed(IMAGES[2:])
    return equalization.apply()


def worst_sqnr(model: onnx.ModelProto) -> float:
    placement = place(Graph(model))
    calibration = Calibration(model, placement.tensors, threads=1)
    calibration.feed(IMAGES)
    thresholds = {name: threshold(h, "minmax") for name, h in calibration.histograms.items()}
    sensitivity = Sensitivity(model, placement, thresholds, threads=1)
    sensitivity.feed(IMAGES)
    return -10 * np.log10(max(sensitivity.noise_to_signal().values()))


def assert_repaired(model: onnx.ModelProto, makers: set[str]) -> None:
    better, spans = equalized(model)
    assert set(spans) == makers
    np.testing.assert_array_equal(run_onnx(better, IMAGES), run_onnx(model, IMAGES))
    assert worst_sqnr(model) < 20
    assert worst_sqnr(better) > 30


def test_through_a_relu():
    graph, x = framed()
    x = graph.op("Relu", graph.conv(x, 8, 8, "a"))
    x = graph.op("Relu", graph.conv(x, 8, 8, "b"))
    spread(graph, "a")
    gather(graph, "b")
    assert_repaired(graph.model(graph.conv(x, 8, 6, "head")), {"a"})


def test_from_a_batchnorm_through_concat_resize_pooling_and_a_gate_to_all_who_read():
    graph, x = framed()
    x = graph.mish(graph.conv(x, 8, 8, "a"))
    statistics = [FAR_APART, 0.1 * FAR_APART, np.full(8, 0.1), np.full(8, 0.5)]
    normed = graph.op("BatchNormalization", x, *[graph.constant(s.astype(np.float32)) for s in statistics])
    attention = graph.op("Sigmoid", graph.conv(normed, 8, 1, "attention", kernel=1))
    gated = graph.op("Mul", normed, attention)
    other = graph.mish(graph.conv(x, 8, 4, "other"))
    joined = graph.op("Concat", other, gated, axis=1)
    b = graph.conv(joined, 12, 8, "b")
    pooled = graph.op("MaxPool", normed, kernel_shape=[2, 2], strides=[2, 2])
    c = graph.upsample(graph.conv(pooled, 8, 8, "c"))
    gather(graph, "attention")
    gather(graph, "b", offset=4)
    gather(graph, "c")
    model = graph.model(graph.conv(graph.op("Add", b, c), 8, 6, "head"))
    better, spans = equalized(model)
    assert list(spans) == [normed]
    np.testing.assert_array_equal(run_onnx(better, IMAGES), run_onnx(model, IMAGES))
    assert worst_sqnr(better) > worst_sqnr(model) + 10


def test_into_grouped_convolutions():
    graph, x = framed()
    x = graph.op("Relu", graph.conv(x, 8, 8, "a"))
    x = graph.op("Relu", graph.conv(x, 8, 8, "grouped", group=4))
    x = graph.op("Relu", graph.conv(x, 8, 8, "b"))
    spread(graph, "grouped")
    gather(graph, "b")
    spread(graph, "a")
    weight = graph._weights["grouped.weight"]
    graph.replace("grouped.weight", weight / np.repeat(FAR_APART.reshape(4, 2), 2, axis=0)[:, :, None, None])
    model = graph.model(graph.conv(x, 8, 6, "head"))
    better, spans = equalized(model)
    assert "grouped" in spans
    np.testing.assert_array_equal(run_onnx(better, IMAGES), run_onnx(model, IMAGES))
    assert worst_sqnr(better) > 30


@pytest.mark.parametrize("blocker", ["Mish", "Add", "Sigmoid", "output"])
def test_not_through_what_a_factor_would_change(blocker: str):
    graph, x = framed()
    a = graph.op("Relu", graph.conv(x, 8, 8, "a"))
    b = graph.conv(a, 8, 8, "b")
    spread(graph, "a")
    gather(graph, "b")
    if blocker == "Mish":
        b = graph.op("Add", b, graph.conv(graph.mish(a), 8, 8, "c"))
    elif blocker == "Add":
        b = graph.op("Add", b, a)
    elif blocker == "Sigmoid":
        b = graph.op("Mul", b, graph.op("Sigmoid", a))
    else:
        b = graph.op("Concat", b, graph.op("Neg", a), axis=1)
    head = graph.conv(b, 16 if blocker == "output" else 8, 6, "head")
    assert equalized(graph.model(head))[1] == {}


def test_an_ordinary_network_is_left_alone():
    graph, x = framed()
    x = graph.op("Relu", graph.conv(graph.op("Relu", graph.conv(x, 8, 8, "a")), 8, 8, "b"))
    model = graph.model(graph.conv(x, 8, 6, "head"))
    same, spans = equalized(model)
    assert spans == {}
    np.testing.assert_array_equal(run_onnx(same, IMAGES), run_onnx(model, IMAGES))


def test_channels_that_were_never_seen_alive_do_no_harm():
    graph, x = framed()
    x = graph.op("Relu", graph.conv(x, 8, 8, "a"))
    spread(graph, "a", np.where(np.arange(8) == 2, 0.0, FAR_APART))
    x = graph.op("Relu", graph.conv(x, 8, 8, "b"))
    gather(graph, "b")
    model = graph.model(graph.conv(x, 8, 6, "head"))
    better, spans = equalized(model)
    assert "a" in spans
    assert np.isfinite(run_onnx(better, IMAGES)).all()
    np.testing.assert_array_equal(run_onnx(better, IMAGES), run_onnx(model, IMAGES))
