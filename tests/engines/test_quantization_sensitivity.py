"""Each layer's own noise, against quantizing that layer alone."""

import numpy as np
import pytest

from support.small_graphs import SmallGraph
from support.tiny_onnx import run_onnx
from unetsharp_engines.contract import INPUT_NAME
from unetsharp_engines.quantization import Calibration, Sensitivity, place, quantize, threshold
from unetsharp_engines.rewrites.graph import Graph

IMAGES = np.random.default_rng(2).random((4, 3, 8, 8)).astype(np.float32)


def test_one_pass_gives_what_quantizing_each_layer_alone_gives():
    graph = SmallGraph()
    x = graph.op("Relu", graph.conv(INPUT_NAME, 3, 8, "first"))
    x = graph.mish(graph.conv(x, 8, 8, "a"))
    y = graph.conv(x, 8, 6, "b", strides=[1, 1])
    # Behind b nothing but a 1×1 that passes on: what b's noise is can be read off the output.
    model = graph.model(graph.conv(y, 6, 6, "head", kernel=1))
    graph.replace("head.weight", np.eye(6)[:, :, None, None])
    graph.replace("head.bias", np.zeros(6))
    model = graph.model(next(n.output[0] for n in model.graph.node if n.name == "head"))
    placement = place(Graph(model))
    assert [layer.name for layer in placement.layers] == ["a", "b"]
    calibration = Calibration(model, placement.tensors, threads=1)
    calibration.feed(IMAGES)
    thresholds = {name: threshold(h, "mse") for name, h in calibration.histograms.items()}
    probe = Sensitivity(model, placement, thresholds, threads=1)
    for image in IMAGES:
        probe.feed(image[None])
    expected, seen = run_onnx(model, IMAGES), run_onnx(quantize(model, placement, thresholds, floats=["a"]), IMAGES)
    ratio = float(((seen - expected) ** 2).sum() / (expected**2).sum())
    assert probe.noise_to_signal()["b"] == pytest.approx(ratio, rel=1e-3)
    assert 0 < probe.noise_to_signal()["a"] < 1e-2


def test_a_layer_that_says_nothing_has_no_noise():
    graph = SmallGraph()
    x = graph.op("Relu", graph.conv(INPUT_NAME, 3, 8, "first"))
    y = graph.conv(x, 8, 8, "silent")
    graph.replace("silent.weight", np.zeros((8, 8, 3, 3)))
    graph.replace("silent.bias", np.zeros(8))
    model = graph.model(graph.conv(y, 8, 6, "head"))
    placement = place(Graph(model))
    probe = Sensitivity(model, placement, dict.fromkeys(placement.tensors, 1.0), threads=1)
    probe.feed(IMAGES)
    assert probe.noise_to_signal() == {"silent": 0.0}
