"""Rewrites that only change how a runtime likes the work: wider groups, chained pools, taps upsampled."""

import numpy as np
import onnx
import onnxruntime
import pytest

from support.networks import exported, random_network
from support.rewriting import BILINEAR, CONV3, RNG, abstains, acts, model, node, ops
from unetsharp.export.precision import to_fp16
from unetsharp_engines.rewrites import rewrite
from unetsharp_engines.rewrites.graph import Graph, attributes


def grouped(group: int, inputs: int, outputs: int) -> onnx.ModelProto:
    weights = {"w": RNG.normal(size=(outputs, inputs // group, 3, 3)), "b": RNG.normal(size=outputs)}
    conv = node("Conv", "image w b", "o", group=group, strides=[2, 2], **CONV3)
    return model([conv], weights, (inputs, 6, 7))


@pytest.mark.parametrize(
    ("group", "inputs", "outputs", "left"), [(32, 128, 128, 4), (32, 128, 64, 4), (16, 16, 32, 1), (4, 64, 64, 2)]
)
def test_groups_are_widened_to_32_channels(group: int, inputs: int, outputs: int, left: int) -> None:
    after = acts(grouped(group, inputs, outputs), "groups-of-32")
    (conv,) = after.graph.node
    assert attributes(conv)["group"] == left
    assert Graph(after).constants[conv.input[1]].shape == (outputs, inputs // left, 3, 3)


def test_wide_groups_and_plain_convolutions_stay() -> None:
    abstains(grouped(2, 64, 8), "groups-of-32", "fewer than 32 channels")
    abstains(grouped(1, 4, 8), "groups-of-32", "fewer than 32 channels")
    abstains(grouped(3, 48, 12), "groups-of-32", "fewer than 32 channels")  # three do not make twos


def pooled(*sides: int, height: int = 16, **changes: object) -> onnx.ModelProto:
    """Means of one map's pools by ``sides``, added up."""
    nodes = []
    for s in sides:
        given = {"kernel_shape": [s, s], "strides": [s, s], "ceil_mode": 1, **changes}
        nodes += [node("MaxPool", "image", f"pool{s}", **given), node("GlobalAveragePool", f"pool{s}", f"mean{s}")]
    return model([*nodes, node("Sum", " ".join(f"mean{s}" for s in sides), "o")], {}, (3, height, 32))


def test_pools_by_2_4_and_8_read_one_another() -> None:
    after = acts(pooled(2, 4, 8), "chain-pools")
    pools = {n.output[0]: n for n in after.graph.node if n.op_type == "MaxPool"}
    assert [pools[f"pool{s}"].input[0] for s in (2, 4, 8)] == ["image", "pool2", "pool4"]
    assert {tuple(attributes(n)["kernel_shape"]) for n in pools.values()} == {(2, 2)}
    assert all(attributes(n)["ceil_mode"] == 1 for n in pools.values())


def test_pools_of_pixels_that_do_not_come_out_even_stay() -> None:
    abstains(pooled(2, 4, height=18, ceil_mode=0), "chain-pools", "several scales")
    abstains(pooled(2, 3, height=24), "chain-pools", "several scales")
    abstains(pooled(4), "chain-pools", "several scales")


def test_head_by_resized_taps_has_one_narrow_convolution() -> None:
    weights = {
        "scales": np.array([1, 1, 2, 2], np.float32),
        "w": RNG.normal(size=(3, 9, 3, 3)),
        "b": RNG.normal(size=3),
    }
    up = node("Resize", "image - scales", "up", **BILINEAR)
    after = acts(model([up, node("Conv", "up w b", "o", **CONV3)], weights, (9, 5, 6)), "head-resized")
    assert ops(after) == ["Conv", "Resize", "Conv"]
    placed = Graph(after).constants[after.graph.node[2].input[1]]
    assert placed.shape == (3, 32, 3, 3)
    assert placed.sum() == 27
    assert set(np.unique(placed)) == {0, 1}


def test_costs_of_wider_groups_are_told() -> None:
    _, report = rewrite(grouped(32, 128, 128), ["groups-of-32"])
    assert report.after.macs == 8 * report.before.macs
    assert report.passes[0].macs_saved < 0


def test_shifts_are_carried_by_the_gates() -> None:
    """Of U-Net#'s 30 BatchNorms behind Mish 20 are branches'. Node d_n has n gates, which take eight channels each."""
    network = exported(random_network("test_resnet", 8), 64, 64)
    after, report = rewrite(network, ["fold-batchnorm-forward", "carry-shifts"])
    assert len(report.passes[1].sites) == 20
    assert ops(after).count("BatchNormalization") == 30 - 5 - 20
    constants = Graph(after).constants
    fuses = [n for n in after.graph.node if n.op_type == "Conv" and "fuse" in n.name]
    assert sorted(constants[n.input[1]].shape[1] for n in fuses) == [40 + 8 * gates for gates in (1, 2, 3, 4)]
    assert ops(after).count("Slice") == 10


def test_a_dead_channel_keeps_its_batchnorm() -> None:
    network = random_network("test_resnet", 4)
    network.decoder.nodes["d2"].shallow[0][2].running_var[1] = 0.0
    _, report = rewrite(exported(network, 64, 64), ["carry-shifts"])
    assert len(report.passes[0].sites) == 19


def test_taps_leave_a_float16_network_as_they_were_computed() -> None:
    network, _ = rewrite(exported(random_network("test_resnet", 4), 64, 64), ["tailless-head-56"])
    half = to_fp16(network)
    narrow, report = rewrite(half, ["taps-as-computed"])
    onnx.checker.check_model(narrow, full_check=True)
    assert report.passes[-1].bytes_saved > 0
    x = RNG.random((2, 3, 64, 64)).astype(np.float32)
    wide, seen = (
        onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"image": x})[0] for m in (half, narrow)
    )
    assert (wide.dtype, seen.dtype) == (np.float32, np.float16)
    np.testing.assert_array_equal(seen, wide.astype(np.float16))  # ONNX Runtime's CPU leaves the rounding out of wide
    abstained = rewrite(network, ["taps-as-computed"])[1].passes[-1]
    assert (abstained.sites, "no Cast" in abstained.note) == ((), True)
