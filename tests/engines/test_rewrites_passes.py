"""Each rewrite on graphs of a few nodes: where it acts, where it must not, and what it counts."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from support.rewriting import BILINEAR, CONV1, CONV3, EXACT, RNG, abstains, acts, difference, model, node, norm, ops
from unetsharp_engines.rewrites import HeadTail, finish, rewrite
from unetsharp_engines.rewrites.cost import Cost, node_costs
from unetsharp_engines.rewrites.graph import Graph
from unetsharp_engines.rewrites.taps import pointwise_taps, tap_matrices

# Taps of a 3×3 behind an upsampling


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 8), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_taps_put_together_are_the_convolution_of_the_upsampled_map(h, w, factor, classes, seed):
    rng = np.random.default_rng(seed)
    x, weight, bias = rng.normal(size=(2, 4, h, w)), rng.normal(size=(classes, 4, 3, 3)), rng.normal(size=classes)
    up = F.interpolate(torch.from_numpy(x), scale_factor=factor, mode="bilinear", align_corners=False)
    wanted = F.conv2d(up, torch.from_numpy(weight), torch.from_numpy(bias), padding=1).numpy()
    taps = F.conv2d(torch.from_numpy(x), *(torch.from_numpy(a.copy()) for a in pointwise_taps(weight, bias))).numpy()
    logits = finish(taps, HeadTail(classes=classes, factor=factor, channels=9 * classes))
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=EXACT)


def test_tap_matrices_of_two_samples():
    above, middle, below = tap_matrices(2, 2)
    np.testing.assert_array_equal(middle, [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    np.testing.assert_array_equal(above, [[0, 0], [1, 0], [0.75, 0.25], [0.25, 0.75]])
    np.testing.assert_array_equal(below, [[0.75, 0.25], [0.25, 0.75], [0, 1], [0, 0]])


def upsampled_conv(**resize: Any) -> onnx.ModelProto:
    weights = {
        "scales": np.array([1, 1, 2, 4], np.float32),
        "w": RNG.normal(size=(3, 9, 3, 3)),
        "b": RNG.normal(size=3),
    }
    up = node("Resize", "image - scales", "up", **{**BILINEAR, **resize})
    return model([up, node("Conv", "up w b", "o", **CONV3)], weights, (9, 5, 6))


def test_head_with_two_different_factors():
    assert "Resize" not in ops(acts(upsampled_conv(), "head-low-resolution"))


def test_head_behind_another_interpolation_is_left_alone():
    abstains(upsampled_conv(mode="nearest", coordinate_transformation_mode="asymmetric"), "head-low-resolution", "3×3")
    abstains(upsampled_conv(coordinate_transformation_mode="align_corners"), "head-low-resolution", "bilinearly")
    abstains(upsampled_conv(), "tailless-head", "3×3")  # its factors differ


def test_inner_convolution_is_taken_apart_only_where_that_saves():
    def network(side: int, channels: int) -> onnx.ModelProto:
        weights = {
            "scales": np.array([1, 1, 2, 2], np.float32),
            "w": RNG.normal(size=(4, channels, 3, 3)),
        }
        nodes = [
            node("Resize", "image - scales", "up", **BILINEAR),
            node("Conv", "up w", "inner", **CONV3),
            node("Relu", "inner", "o"),
        ]
        return model(nodes, weights, (channels, side, side))

    acts(network(8, 40), "deep-low-resolution")
    abstains(network(32, 2), "deep-low-resolution", "1 more would cost more arithmetic")


# Taps in padding


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.tuples(st.sampled_from([1, 2, 3, 5]), st.sampled_from([1, 2, 3, 5])),
    dilations=st.tuples(st.integers(2, 6), st.integers(1, 6)),
    pads=st.tuples(*[st.integers(0, 9)] * 4),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    sides=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_dilated_convolutions_of_every_make_stay_what_they_are(kernel, dilations, pads, strides, sides):
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    if any(s + pads[i] + pads[i + 2] < r for i, (s, r) in enumerate(zip(sides, reach, strict=True))):
        return  # no output
    given_attributes = {"dilations": dilations, "pads": pads, "strides": strides, "kernel_shape": kernel}
    before = model(
        [node("Conv", "image w", "o", **given_attributes)], {"w": RNG.normal(size=(2, 3, *kernel))}, (3, *sides)
    )
    after, _ = rewrite(before, ["aspp-centre-taps"])
    assert difference(before, after) <= EXACT


def dilated(height: int, width: int, dilation: int) -> onnx.ModelProto:
    conv = {"kernel_shape": [3, 3], "pads": [dilation] * 4, "dilations": [dilation] * 2}
    return model([node("Conv", "image w", "o", **conv)], {"w": RNG.normal(size=(2, 3, 3, 3))}, (3, height, width))


@pytest.mark.parametrize(
    ("height", "width", "kernel"),
    [(12, 12, (1, 1)), (12, 13, (1, 3)), (13, 5, (3, 1))],
)
def test_taps_go_exactly_where_the_side_is_at_most_the_dilation(height, width, kernel):
    after = acts(dilated(height, width, 12), "aspp-centre-taps")
    assert numpy_helper.to_array(after.graph.initializer[0]).shape[2:] == kernel


def test_taps_that_reach_the_picture_stay():
    abstains(dilated(13, 13, 12), "aspp-centre-taps", "meets the picture")


# BatchNorm


def test_batchnorm_goes_through_resize_and_concat_into_every_unpadded_reader():
    nodes = [
        node("BatchNormalization", "image n0 n1 n2 n3", "normed"),
        node("Resize", "normed - scales", "up", **BILINEAR),
        node("Relu", "up", "other"),  # what is concatenated in front
        node("Concat", "image image", "pair", axis=1),
        node("Conv", "pair w1", "first", **CONV1),
        node("BatchNormalization", "first m0 m1 m2 m3", "second"),
        node("Concat", "image second", "both", axis=1),
        node("Conv", "both w2 b2", "a", kernel_shape=[2, 2]),
        node("Conv", "second w3", "b", kernel_shape=[2, 2]),
        node("Add", "a b", "o"),
    ]
    weights = {
        "scales": np.array([1, 1, 2, 2], np.float32),
        "w1": RNG.normal(size=(4, 6, 1, 1)),
        "w2": RNG.normal(size=(5, 7, 2, 2)),
        "b2": RNG.normal(size=5),
        "w3": RNG.normal(size=(5, 4, 2, 2)),
        **norm("n", 3),
        **norm("m", 4),
    }
    after = acts(model(nodes, weights, (3, 6, 5)), "fold-batchnorm-forward")
    assert "BatchNormalization" not in ops(after)


def test_batchnorm_read_through_interpolation_and_pooling():
    nodes = [
        node("Mish", "image", "mish"),
        node("BatchNormalization", "mish n0 n1 n2 n3", "normed"),
        node("Resize", "normed - scales", "up", **BILINEAR),
        node("Conv", "up w1", "a", **CONV1),
        node("GlobalAveragePool", "normed", "pooled"),
        node("Conv", "pooled w2", "b", **CONV1),
        node("Add", "a b", "o"),
    ]
    weights = {
        "scales": np.array([1, 1, 2, 3], np.float32),
        "w1": RNG.normal(size=(2, 3, 1, 1)),
        "w2": RNG.normal(size=(2, 3, 1, 1)),
        **norm("n", 3),
    }
    after = acts(model(nodes, weights, (3, 6, 5)), "fold-batchnorm-forward")
    assert "BatchNormalization" not in ops(after)


@pytest.mark.parametrize(
    "readers",
    [
        [node("Conv", "normed w3", "o", **CONV3)],
        [node("Conv", "normed w1", "a", **CONV1), node("Relu", "normed", "b"), node("Concat", "a b", "o", axis=1)],
        [node("Conv", "normed wg", "o", kernel_shape=[1, 1], group=3)],
        [node("Resize", "normed - scales", "o", **BILINEAR)],
    ],
    ids=["padded", "also read by another", "grouped", "an output"],
)
def test_batchnorm_stays_where_a_reader_cannot_take_it(readers):
    weights = {
        "w3": RNG.normal(size=(2, 3, 3, 3)),
        "w1": RNG.normal(size=(3, 3, 1, 1)),
        "wg": RNG.normal(size=(3, 1, 1, 1)),
        "scales": np.array([1, 1, 2, 2], np.float32),
        **norm("n", 3),
    }
    before = model([node("BatchNormalization", "image n0 n1 n2 n3", "normed"), *readers], weights, (3, 4, 4))
    abstains(before, "fold-batchnorm-forward", "1 stay: a reader pads")


def test_batchnorm_with_a_dead_channel_stays_for_float16_to_find():
    nodes = [node("BatchNormalization", "image n0 n1 n2 n3", "normed"), node("Conv", "normed w", "o", **CONV1)]
    weights = {"w": RNG.normal(size=(2, 3, 1, 1)), **norm("n", 3)}
    acts(model(nodes, weights, (3, 4, 4)), "fold-batchnorm-forward")
    weights["n3"][1] = 1e-13
    abstains(model(nodes, weights, (3, 4, 4)), "fold-batchnorm-forward", "1 stay: they hold dead channels")


def test_weights_shared_by_two_convolutions_are_not_changed_for_both():
    nodes = [
        node("BatchNormalization", "image n0 n1 n2 n3", "normed"),
        node("Conv", "normed w", "a", **CONV1),
        node("Conv", "image w", "b", **CONV1),
        node("Add", "a b", "o"),
    ]
    acts(model(nodes, {"w": RNG.normal(size=(3, 3, 1, 1)), **norm("n", 3)}, (3, 4, 4)), "fold-batchnorm-forward")


def test_batchnorm_behind_a_shared_or_absent_convolution_is_not_folded_back():
    nodes = [
        node("Conv", "image w", "c", **CONV3),
        node("BatchNormalization", "c n0 n1 n2 n3", "normed"),
        node("Add", "c normed", "o"),
    ]
    weights = {"w": RNG.normal(size=(3, 3, 3, 3)), **norm("n", 3)}
    abstains(model(nodes, weights, (3, 4, 4)), "fold-batchnorm-back", "no BatchNorm follows a convolution")
    alone = [*nodes[:2], node("Relu", "normed", "o")]
    after = acts(model(alone, weights, (3, 4, 4)), "fold-batchnorm-back")
    assert ops(after) == ["Conv", "Relu"]


# Mish


def test_mish_in_both_spellings_is_spelt_out():
    nodes = [
        node("Mish", "image", "m"),
        node("Softplus", "m", "s"),
        node("Tanh", "s", "t"),
        node("Mul", "m t", "o"),
    ]
    after = acts(model(nodes, {}, (2, 3, 3)), "mish-by-exp")
    assert not {"Mish", "Softplus", "Tanh"} & set(ops(after))


def test_softplus_that_is_no_part_of_mish_stays():
    abstains(model([node("Softplus", "image", "o")], {}, (2, 3, 3)), "mish-by-exp", "no Mish")
    shared = [node("Softplus", "image", "s"), node("Tanh", "s", "t"), node("Add", "s t", "o")]
    abstains(model(shared, {}, (2, 3, 3)), "mish-by-exp", "no Mish")


def test_spelt_out_mish_keeps_the_digits_of_single_precision_everywhere():
    ends = [-3e38, -1e4, -88.0, -1e-30, 0.0, 1e-30, 19.9, 20.1, 89.0, 1e4, 3e38]
    x = np.array([*ends, *np.linspace(-80, 30, 10_000)], np.float32).reshape(1, 1, 1, -1)
    value = helper.make_tensor_value_info("image", TensorProto.FLOAT, x.shape)
    output = helper.make_tensor_value_info("o", TensorProto.FLOAT, x.shape)
    graph = helper.make_graph([node("Mish", "image", "o")], "mish", [value], [output])
    before = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    after, _ = rewrite(before, ["mish-by-exp"])
    (y,) = onnxruntime.InferenceSession(after.SerializeToString()).run(None, {"image": x})
    wide = x.astype(np.float64)
    np.testing.assert_allclose(y, wide * np.tanh(np.logaddexp(0, wide)), rtol=1e-6, atol=1e-36)


def test_spelt_out_mish_is_as_good_in_half_precision_everywhere():
    """Every float16, each operation rounded: no further from Mish than twice what Softplus and Tanh are, so rounded."""
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    x = x[np.isfinite(x)]
    value, output = (helper.make_tensor_value_info(n, TensorProto.FLOAT16, [1, len(x)]) for n in ("image", "o"))
    spelled = [node("Softplus", "image", "s"), node("Tanh", "s", "t"), node("Mul", "image t", "o")]
    graph = helper.make_graph(spelled, "mish", [value], [output])
    before = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    after, report = rewrite(before, ["mish-by-exp"])
    assert report.passes[0].sites
    with np.errstate(over="ignore"):
        seen, plain = (ReferenceEvaluator(m).run(None, {"image": x[None]})[0][0] for m in (after, before))
    wide = x.astype(np.float64)
    true = wide * np.tanh(np.logaddexp(0, wide))
    assert seen.dtype == np.float16
    assert np.isfinite(seen).all()
    error, plain_error = (np.abs(y.astype(np.float64) - true) for y in (seen, plain))
    scale = np.maximum(np.abs(true), 2.0**-14)
    assert (error / scale).max() <= 2 * (plain_error / scale)[np.isfinite(plain_error)].max()


# Constant channels


def constant_channels(first: dict[str, Any], tail: list[onnx.NodeProto], weights: dict[str, Any]) -> onnx.ModelProto:
    """A convolution to 4 channels of which those in ``first`` (channel → bias) have no weights, then ``tail``."""
    w, b = RNG.normal(size=(4, 3, 3, 3)), RNG.normal(size=4)
    for channel, bias in first.items():
        w[channel], b[channel] = 0.0, bias
    return model([node("Conv", "image w b", "c", **CONV3), *tail], {"w": w, "b": b, **weights}, (3, 6, 6))


def test_dead_relu_channels_are_dropped_even_before_padding():
    tail = [
        node("Relu", "c", "r"),
        node("MaxPool", "r", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "p w2", "o", **CONV3),
    ]
    before = constant_channels({0: -1.0, 2: 0.0}, tail, {"w2": RNG.normal(size=(5, 4, 3, 3))})
    after = acts(before, "drop-constant-channels")
    assert {numpy_helper.to_array(t).shape for t in after.graph.initializer} == {(2, 3, 3, 3), (2,), (5, 2, 3, 3), (5,)}


def test_constant_mish_channel_moves_into_the_bias_of_what_does_not_pad():
    tail = [
        node("Softplus", "c", "s"),
        node("Tanh", "s", "t"),
        node("Mul", "c t", "m"),
        node("BatchNormalization", "m n0 n1 n2 n3", "n"),
        node("Concat", "image n", "both", axis=1),
        node("Conv", "both w2", "y", **CONV1),
        node("Resize", "n - scales", "up", **BILINEAR),
        node("Conv", "up w3 b3", "z", kernel_shape=[1, 1], strides=[2, 2]),
        node("Add", "y z", "o"),
    ]
    weights = {
        "w2": RNG.normal(size=(5, 7, 1, 1)),
        "w3": RNG.normal(size=(5, 4, 1, 1)),
        "b3": RNG.normal(size=5),
        "scales": np.array([1, 1, 2, 2], np.float32),
        **norm("n", 4),
    }
    after = acts(constant_channels({1: 0.7}, tail, weights), "drop-constant-channels")
    assert (5, 6, 1, 1) in {numpy_helper.to_array(t).shape for t in after.graph.initializer}


def test_constant_channel_stays_where_its_absence_would_be_seen():
    padded = [node("Relu", "c", "r"), node("Conv", "r w2", "o", **CONV3)]
    weights = {"w2": RNG.normal(size=(5, 4, 3, 3))}
    abstains(constant_channels({1: 0.7}, padded, weights), "drop-constant-channels", "1 constant channels stay")
    output = [node("Relu", "c", "o")]
    abstains(constant_channels({1: 0.7}, output, {}), "drop-constant-channels", "1 constant channels stay")
    gated = [
        node("Conv", "image g", "gate", **CONV1),
        node("Mul", "c gate", "r"),
        node("Conv", "r w2", "o", **CONV1),
    ]
    weights = {"g": RNG.normal(size=(1, 3, 1, 1)), "w2": RNG.normal(size=(5, 4, 1, 1))}
    abstains(constant_channels({1: 0.7}, gated, weights), "drop-constant-channels", "1 constant channels stay")
    acts(constant_channels({1: 0.0}, gated, weights), "drop-constant-channels")


def test_a_network_of_constant_channels_only_keeps_one():
    tail = [node("Relu", "c", "r"), node("Conv", "r w2", "o", **CONV1)]
    before = constant_channels({i: 0.3 * i for i in range(4)}, tail, {"w2": RNG.normal(size=(5, 4, 1, 1))})
    after = acts(before, "drop-constant-channels")
    assert (5, 1, 1, 1) in {numpy_helper.to_array(t).shape for t in after.graph.initializer}


# Gates


def test_sum_that_is_no_gate_is_not_merged():
    nodes = [
        node("Conv", "image w", "a", **CONV1),
        node("Conv", "image v", "b", **CONV1),
        node("Add", "a b", "sum"),
        node("Relu", "sum", "o"),
    ]
    weights = {"w": RNG.normal(size=(2, 3, 1, 1)), "v": RNG.normal(size=(2, 3, 1, 1))}
    abstains(model(nodes, weights, (3, 4, 4)), "merge-gates", "one-channel sigmoid")


# Cost


def test_cost_counted_by_hand():
    nodes = [
        node("Conv", "image w", "c", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], group=2),
        node("Relu", "c", "r"),
        node("Reshape", "r shape", "flat"),
        node("MatMul", "flat m", "o"),
    ]
    weights = {"w": np.ones((6, 2, 3, 3)), "shape": np.array([0, 6, 1, 16]), "m": np.ones((16, 5))}
    costs = {n.op_type: cost for n, cost in node_costs(Graph(model(nodes, weights, (4, 8, 8))))}
    assert costs == {
        "Conv": Cost(macs=6 * 16 * 2 * 9, bytes=8 * (4 * 64 + 6 * 2 * 9 + 6 * 16)),
        "Relu": Cost(macs=0, bytes=8 * 2 * 96),
        "Reshape": Cost(),
        "MatMul": Cost(macs=6 * 5 * 16, bytes=8 * (96 + 80 + 30)),
    }


def test_nodes_that_no_output_needs_cost_nothing():
    nodes = [node("Conv", "image w", "unused", **CONV1), node("Relu", "image", "o")]
    graph = Graph(model(nodes, {"w": np.ones((1, 3, 1, 1))}, (3, 4, 4)))
    assert [n.op_type for n, _ in node_costs(graph)] == ["Relu"]
