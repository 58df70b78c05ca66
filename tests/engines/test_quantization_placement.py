"""Each rule of the recipe on a graph of a few nodes, all of them on whole networks."""

import functools

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from support.networks import exported, random_network
from support.small_graphs import SmallGraph
from support.tiny_onnx import run_onnx
from unetsharp_engines.contract import INPUT_NAME
from unetsharp_engines.quantization import Calibration, place, quantize, threshold
from unetsharp_engines.quantization.insertion import LEAST_SCALE, quantized_weight
from unetsharp_engines.quantization.placement import Identity, Placement
from unetsharp_engines.rewrites import DEFAULT, PORTABLE, rewrite
from unetsharp_engines.rewrites.graph import Graph, attributes, name_of


def placement_of(model: onnx.ModelProto, **options: bool) -> Placement:
    return place(Graph(model), **options)


def names(placement: Placement) -> list[str]:
    return [layer.name for layer in placement.layers]


def reasons(placement: Placement) -> dict[str, str]:
    return {layer.name: layer.reason for layer in placement.floats}


def int8(model: onnx.ModelProto, placement: Placement, image: np.ndarray, **options) -> onnx.ModelProto:
    calibration = Calibration(model, placement.tensors, threads=1)
    calibration.feed(image)
    thresholds = {name: threshold(h, "minmax") for name, h in calibration.histograms.items()}
    return quantize(model, placement, thresholds, **options)


def image_of(side: int, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(3).random((batch, 3, side, side)).astype(np.float32)


def framed(side: int = 8):
    """A graph begun with a first convolution: the rest of it, and what to read."""
    graph = SmallGraph(side)
    return graph, graph.op("Relu", graph.conv(INPUT_NAME, 3, 8, "first"))


def finished(graph: SmallGraph, x: str, channels: int = 8) -> onnx.ModelProto:
    return graph.model(graph.conv(x, channels, 6, "head"))


def test_rule_1_each_input_has_a_pair_of_its_own_and_nothing_else_has():
    graph, x = framed()
    a, b = (graph.mish(graph.conv(x, 8, 8, name)) for name in ("a", "b"))
    model = finished(graph, graph.op("Add", a, b))
    quantized = Graph(int8(model, placement_of(model), image_of(8)))
    activations = [n for n in quantized.nodes if n.op_type == "QuantizeLinear"]
    assert [n.input[0] for n in activations] == [x, x]
    for node in activations:
        (pair,) = quantized.consumers(node.output[0])
        (conv,) = quantized.consumers(pair.output[0])
        assert (pair.op_type, conv.op_type) == ("DequantizeLinear", "Conv")
        assert pair.input[1:] == node.input[1:]
        assert quantized.constants[node.input[2]] == np.int8(0)
        assert [quantized.constants[name].shape for name in node.input[1:]] == [(), ()]  # a number, no vector of one
        assert quantized.constants[conv.input[2]].dtype == np.float32
        weight = quantized.producer(conv.input[1])
        assert weight is not None
        assert attributes(weight)["axis"] == 0
        levels, scale, zero = (quantized.constants[name] for name in weight.input)
        assert (levels.dtype, scale.shape, zero.dtype) == (np.int8, (8,), np.int8)
        assert np.abs(levels.astype(int)).reshape(8, -1).max(axis=1).tolist() == [127] * 8
        assert not zero.any()


@pytest.mark.parametrize("step", ["MaxPool", "linear", "nearest"])
def test_rule_2_what_is_pooled_or_resized_has_the_scale_of_what_it_came_from(step: str):
    graph, x = framed(8)
    pooled = graph.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    moved = graph.upsample(pooled, step) if step != "MaxPool" else pooled
    y = graph.conv(moved, 8, 8, "behind", strides=[1, 1])
    y = graph.upsample(y) if step == "MaxPool" else y
    model = finished(graph, graph.op("Add", y, graph.conv(x, 8, 8, "beside")))
    layers = {layer.name: layer for layer in placement_of(model).layers}
    assert (layers["behind"].value, layers["behind"].scale_of) == (moved, x)
    assert layers["beside"].scale_of == x


def test_rule_2_a_cubic_resize_overshoots_and_has_a_scale_of_its_own():
    graph, x = framed(8)
    small = graph.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    large = graph.upsample(small, "cubic")
    model = finished(graph, graph.conv(large, 8, 8, "behind"))
    (layer,) = placement_of(model).layers
    assert layer.scale_of == large


def test_rule_3_identity_of_a_residual_block():
    graph, x = framed()
    inner = graph.op("Relu", graph.conv(x, 8, 8, "conv1"))
    added = graph.op("Add", graph.conv(inner, 8, 8, "conv2"), x, name="add")
    model = finished(graph, graph.op("Relu", added))
    identities = {layer.name: layer.identity for layer in placement_of(model).layers}
    assert identities == {"conv1": None, "conv2": Identity(add="add", value=x, scale_of=x)}
    quantized = Graph(int8(model, placement_of(model), image_of(8)))
    (add,) = [n for n in quantized.nodes if n.op_type == "Add"]
    main, identity = (quantized.producer(name) for name in add.input)
    assert main is not None
    assert identity is not None
    assert (main.op_type, identity.op_type) == ("Conv", "DequantizeLinear")


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("pooled", [False, True])
def test_rule_3_of_two_convolutions_the_shortcut_is_the_identity(swapped: bool, pooled: bool):
    graph, x = framed()
    start = graph.op("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]) if pooled else x
    shortcut = graph.conv(start, 8, 8, "shortcut", kernel=1)
    main = graph.conv(graph.op("Relu", graph.conv(x, 8, 8, "conv1")), 8, 8, "conv2")
    added = graph.op("Add", *([shortcut, main] if swapped else [main, shortcut]), name="add")
    layers = {layer.name: layer.identity for layer in placement_of(finished(graph, graph.op("Relu", added))).layers}
    assert layers["shortcut"] is None
    assert layers["conv2"] == Identity(add="add", value=shortcut, scale_of=shortcut)


def test_rule_3_goes_with_its_convolution():
    graph, x = framed()
    added = graph.op("Add", graph.conv(x, 8, 8, "conv"), x)
    model = finished(graph, added)
    plain = int8(model, placement_of(model), image_of(8), floats=["conv"])
    assert not {n.op_type for n in plain.graph.node} & {"QuantizeLinear", "DequantizeLinear"}


def test_rule_4_concat_is_quantized_behind_it_with_one_scale():
    graph, x = framed()
    parts = [graph.mish(graph.conv(x, 8, 8, name)) for name in ("a", "b")]
    joined = graph.op("Concat", *parts, axis=1)
    model = finished(graph, graph.mish(graph.conv(joined, 16, 8, "fuse")))
    assert {layer.name: layer.value for layer in placement_of(model).layers}["fuse"] == joined
    quantized = Graph(int8(model, placement_of(model), image_of(8)))
    (concat,) = [n for n in quantized.nodes if n.op_type == "Concat"]
    assert list(concat.input) == parts
    assert [n.op_type for n in quantized.consumers(joined)] == ["QuantizeLinear"]


@pytest.mark.parametrize("merged", [False, True])
def test_rule_5_attention_gates_stay_float(merged: bool):
    graph, x = framed()
    branch, signal = (graph.mish(graph.conv(x, 8, 8, name)) for name in ("branch", "signal"))
    if merged:
        seen = graph.conv(graph.op("Concat", signal, branch, axis=1), 16, 8, "gate", kernel=1)
    else:
        of_signal, of_branch = (graph.conv(v, 8, 8, n, kernel=1) for v, n in ((signal, "gate"), (branch, "gate2")))
        seen = graph.op("Add", of_signal, of_branch)
    attention = graph.op("Sigmoid", graph.conv(graph.op("Relu", seen), 8, 1, "attention", kernel=1))
    model = finished(graph, graph.op("Mul", branch, attention))
    placement = placement_of(model)
    assert names(placement) == ["branch", "signal"]
    gates = [name for name, reason in reasons(placement).items() if "sigmoid" in reason]
    assert sorted(gates) == (["attention", "gate"] if merged else ["attention", "gate", "gate2"])


def test_rule_5_swish_is_no_gate():
    graph, x = framed()
    y = graph.conv(x, 8, 8, "conv")
    model = finished(graph, graph.op("Mul", y, graph.op("Sigmoid", y)))
    assert names(placement_of(model)) == ["conv"]


def test_rules_5_and_7_squeeze_and_excitation_stays_float_and_what_it_weighs_does_not():
    graph, x = framed()
    y = graph.conv(x, 8, 8, "conv", kernel=1)
    squeezed = graph.op("Relu", graph.conv(graph.op("GlobalAveragePool", y), 8, 8, "reduce", kernel=1))
    weight = graph.op("Sigmoid", graph.conv(squeezed, 8, 8, "expand", kernel=1))
    placement = placement_of(finished(graph, graph.op("Mul", y, weight)))
    assert names(placement) == ["conv"]
    assert set(reasons(placement)) == {"first", "reduce", "expand", "head"}


def test_rule_6_first_and_last():
    graph, x = framed()
    placement = placement_of(finished(graph, graph.op("Relu", graph.conv(x, 8, 8, "middle"))))
    assert names(placement) == ["middle"]
    assert reasons(placement) == {"first": "reads the image", "head": "makes the logits"}


def test_rule_7_what_sees_one_pixel():
    graph, x = framed()
    pooled = graph.op("Relu", graph.conv(graph.op("GlobalAveragePool", x), 8, 8, "pooled", kernel=1))
    model = finished(graph, graph.op("Add", graph.mish(graph.conv(x, 8, 8, "point", kernel=1)), pooled))
    placement = placement_of(model)
    assert names(placement) == ["point"]
    assert reasons(placement)["pooled"] == "sees a single pixel"


def test_rule_8_grouped_convolutions_are_an_option():
    graph, x = framed()
    model = finished(graph, graph.op("Relu", graph.conv(x, 8, 8, "grouped", group=2)))
    assert reasons(placement_of(model))["grouped"] == "grouped"
    assert names(placement_of(model, grouped=True)) == ["grouped"]
    levels = Graph(int8(model, placement_of(model, grouped=True), image_of(8))).constants["grouped/int8/levels"]
    assert levels.shape == (8, 4, 3, 3)


def test_weights_are_off_by_half_a_step_at_most_and_dead_channels_stay_dead():
    weight = np.random.default_rng(0).standard_normal((5, 4, 3, 3)).astype(np.float32)
    weight[1] *= 1e-3
    weight[2] = 0
    weight[3] *= 1e-38
    levels, scale = quantized_weight(weight)
    error = np.abs(levels * scale[:, None, None, None].astype(np.float64) - weight)
    assert (error.reshape(5, -1).max(axis=1) <= 0.5001 * scale).all()
    assert not levels[2].any()
    assert scale.min() >= np.float32(LEAST_SCALE)


NETWORKS = {"plain": "test_resnet", "grouped": "test_byobnet", "depthwise": "test_efficientnet"}
SETS = {"as exported": (), "portable": PORTABLE, "for onnxruntime": DEFAULT["onnxruntime"]}


@functools.cache
def network(which: str, passes: tuple[str, ...]) -> onnx.ModelProto:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = exported(random_network(NETWORKS[which], 8), 64, 64)
    torch.set_num_threads(threads)
    return rewrite(model, passes)[0] if passes else model


@pytest.mark.parametrize("passes", SETS)
@pytest.mark.parametrize("which", NETWORKS)
def test_whole_networks(which: str, passes: str):
    model, image = network(which, SETS[passes]), image_of(64, batch=2)
    placement = placement_of(model)
    floats = list(reasons(placement).values())
    assert floats.count("leads to a gate's sigmoid") >= 30  # three in each of ten gates
    assert floats.count("reads the image") == 1
    assert floats.count("makes the logits") == 1
    decoder = [name for name in names(placement) if "decoder" in name]
    assert len(decoder) == 20  # ten shallow, six deep, four fusing
    quantized = int8(model, placement, image)
    onnx.checker.check_model(quantized, full_check=True)
    assert_recipe_holds(Graph(quantized))
    expected, seen = run_onnx(model, image), run_onnx(quantized, image)
    assert 10 * np.log10((expected**2).sum() / ((expected - seen) ** 2).sum()) > 25


def assert_recipe_holds(graph: Graph) -> None:
    """What must be true of every quantized graph."""
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear":
            assert [n.op_type for n in graph.consumers(node.output[0])] == ["DequantizeLinear"]
        elif node.op_type == "DequantizeLinear":
            readers = graph.consumers(node.output[0])
            assert len(readers) == 1, "a pair of its own"
            assert readers[0].op_type in {"Conv", "Add"}
        elif node.op_type == "Conv":
            kinds = {getattr(graph.producer(name), "op_type", None) == "DequantizeLinear" for name in node.input[:2]}
            assert len(kinds) == 1, f"{name_of(node)} has one input in INT8 and one in float"
            assert all(getattr(graph.producer(n), "op_type", None) != "DequantizeLinear" for n in node.input[2:])
        elif node.op_type == "Add":
            dequantized = [getattr(graph.producer(n), "op_type", None) == "DequantizeLinear" for n in node.input]
            assert sum(dequantized) <= 1, "only the identity branch"
    assert all(a.dtype != np.int32 for a in graph.constants.values())


def test_tensorrt_rtx_parses_and_builds_for_ampere_and_blackwell():
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    model = network("plain", PORTABLE)
    content = int8(model, placement_of(model), image_of(64)).SerializeToString()
    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    parsed = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(parsed, log)
    assert parser.parse(content), parser.get_error(0).desc()
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT_NAME, *[(n, 3, 64, 64) for n in (1, 2, 4)])
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 2
    for index, target in enumerate((trt.ComputeCapability.SM86, trt.ComputeCapability.SM120)):
        config.set_compute_capability(target, index)
    assert builder.build_serialized_network(parsed, config) is not None


def test_int8_weights_are_stored_as_such():
    model = network("plain", ())
    quantized = int8(model, placement_of(model), image_of(64))
    kinds = {t.data_type for t in quantized.graph.initializer}
    assert TensorProto.INT8 in kinds
    size = sum(numpy_helper.to_array(t).nbytes for t in quantized.graph.initializer)
    assert size < 0.45 * sum(numpy_helper.to_array(t).nbytes for t in model.graph.initializer)
