"""The deep convolutions as 1×1 and one plugin node: exact in float64, on small graphs and whole networks."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from support.networks import evaluated, exported, in_float64, random_network
from support.rewriting import BILINEAR, CONV3, RNG, abstains, acts, model, node, norm, ops
from unetsharp.export.precision import to_fp16
from unetsharp_engines.rewrites import DEFAULT, NEEDING_PLUGIN, PASSES, PORTABLE, TAIL_LESS, TYPED, finish, rewrite
from unetsharp_engines.rewrites.cost import node_costs
from unetsharp_engines.rewrites.graph import Graph, attributes
from unetsharp_engines.rewrites.plugin_node import DOMAIN, OP_TYPE
from unetsharp_engines.rewrites.tail import TAIL_KEY, HeadTail

EXACT = 1e-9
NAME = "deep-one-kernel"

MISHES = {
    "mish": [node("Mish", "c", "m")],
    "softplus and tanh": [node("Softplus", "c", "s"), node("Tanh", "s", "t"), node("Mul", "c t", "m")],
    "the other way round": [node("Softplus", "c", "s"), node("Tanh", "s", "t"), node("Mul", "t c", "m")],
}


def deep(mish: list[onnx.NodeProto], *further: onnx.NodeProto, factors: tuple[int, int] = (2, 2)) -> onnx.ModelProto:
    """Resize, 3×3 from 6 to 5 channels, ``mish``, BatchNorm to "n", and ``further`` to "o"."""
    nodes = [
        node("Resize", "image - scales", "up", **BILINEAR),
        node("Conv", "up w b", "c", **CONV3),
        *mish,
        node("BatchNormalization", "m n0 n1 n2 n3", "n"),
        *(further or [node("Identity", "n", "o")]),
    ]
    weights = {
        "scales": np.array([1, 1, *factors], np.float32),
        "w": RNG.normal(size=(5, 6, 3, 3)),
        "b": RNG.normal(size=5),
        **norm("n", 5),
    }
    return model(nodes, weights, (6, 3, 4))


@pytest.mark.parametrize("mish", MISHES.values(), ids=MISHES)
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_becomes_two_nodes(mish: list[onnx.NodeProto], factor: int) -> None:
    after = acts(deep(mish, factors=(factor, factor)), NAME)
    assert ops(after) == ["Conv", OP_TYPE, "Identity"]
    plugin = after.graph.node[1]
    assert plugin.domain == DOMAIN
    asked = {"plugin_namespace": DOMAIN, "plugin_version": "1", "aot": 1}
    assert attributes(plugin) == {"factors": [factor, factor], **asked}
    assert {o.domain: o.version for o in after.opset_import} == {"": 18, DOMAIN: 1}
    shapes = [array.shape for array in Graph(after).constants.values()]
    assert sorted(shapes) == [(5,), (5,), (45,), (45, 6, 1, 1)]


def test_mish_by_exp_is_known_too() -> None:
    spelt, _ = rewrite(deep(MISHES["mish"]), ["mish-by-exp"])
    del spelt.metadata_props[:]
    assert ops(acts(spelt, NAME)) == ["Conv", OP_TYPE, "Identity"]
    for name, array in Graph(spelt).constants.items():  # another cap, or another sum, is no Mish
        if array.shape == ():
            other = onnx.ModelProto()
            other.CopyFrom(spelt)
            changed = next(t for t in other.graph.initializer if t.name == name)
            changed.CopyFrom(onnx.numpy_helper.from_array(np.asarray(array + 0.5), name))
            abstains(other, NAME, "1 more have no Mish")


@pytest.mark.parametrize(
    ("before", "why"),
    [
        (deep([node("Relu", "c", "m")]), "1 more have no Mish"),
        (deep([node("Tanh", "c", "t"), node("Mul", "c t", "m")]), "1 more have no Mish"),
        (deep(MISHES["mish"], node("Add", "n m", "o")), "1 more have no Mish and BatchNorm alone"),
        (deep(MISHES["mish"], node("Add", "n c", "o")), "1 more have no Mish and BatchNorm alone"),
        (deep(MISHES["softplus and tanh"], node("Add", "n s", "o")), "1 more have no Mish and BatchNorm alone"),
        (deep(MISHES["mish"], factors=(2, 4)), "or other factors"),
        (deep(MISHES["mish"], factors=(3, 3)), "or other factors"),
        (model([node("Mish", "image", "o")], {}, (2, 3, 3)), "no 3×3 convolution"),
    ],
    ids=["no Mish", "nearly Mish", "Mish read", "sum read", "inside read", "two factors", "factor 3", "nothing"],
)
def test_stays_where_the_kernel_does_not_fit(before: onnx.ModelProto, why: str) -> None:
    abstains(before, NAME, why)


def test_a_dead_channel_stays_for_float16_to_find() -> None:
    before = deep(MISHES["mish"])
    variance = next(t for t in before.graph.initializer if t.name == "n3")
    values = onnx.numpy_helper.to_array(variance).copy()
    values[1] = 1e-13
    variance.CopyFrom(onnx.numpy_helper.from_array(values, "n3"))
    abstains(before, NAME, "1 more have no Mish and BatchNorm alone")


def test_costs_of_the_node_counted_by_hand() -> None:
    after = acts(deep(MISHES["mish"], factors=(4, 4)), NAME)
    costs = {n.op_type: cost for n, cost in node_costs(Graph(after))}
    rows_across = 3 * 3 * 2 * 3 * 16  # three row shifts, three column shifts of two terms, 3 rows of 16 columns
    columns_down = 3 * 2 * 12 * 16
    assert costs[OP_TYPE].macs == 5 * (rows_across + columns_down)
    assert costs[OP_TYPE].bytes == 8 * (45 * 12 + 2 * 5 + 5 * 12 * 16)
    assert costs["Conv"].macs == 45 * 6 * 12


def network(encoder: str, width: int, *sides: int) -> tuple[onnx.ModelProto, Any]:
    image = np.random.default_rng(5).random((2, 3, *sides))
    return in_float64(exported(random_network(encoder, width), *sides)), image


@pytest.mark.parametrize(("encoder", "width", "sides"), [("test_resnet", 4, (64, 96)), ("test_byobnet", 6, (96, 32))])
@pytest.mark.parametrize(
    "names",
    [
        (NAME,),
        tuple(name for name in PASSES if name in (*PORTABLE, NAME)),
        ("mish-by-exp", NAME, "carry-shifts"),
        tuple(
            n for n in PASSES if n not in ("deep-low-resolution", "head-resized", "tailless-head", "tailless-head-56")
        ),
    ],
    ids=["alone", "portable", "by exp before", "all"],
)
def test_whole_networks_stay_what_they_are(encoder: str, width: int, sides: tuple[int, int], names: Any) -> None:
    before, image = network(encoder, width, *sides)
    after, report = rewrite(before, names)
    onnx.checker.check_model(after, full_check=True)
    done = {done.name: len(done.sites) for done in report.passes}
    assert done[NAME] == 6
    assert ops(after).count(OP_TYPE) == 6
    wanted = evaluated(before, image)
    assert np.abs(wanted).max() > 0.1
    assert np.abs(evaluated(after, image) - wanted).max() <= EXACT


def test_frees_three_more_batchnorms() -> None:
    """Nothing upsamples d2, d3 and d4 any more: the 1×1 that read them take their BatchNorms."""
    before, _ = network("test_resnet", 4, 64, 64)
    with_it, without = (
        {d.name: len(d.sites) for d in rewrite(before, names)[1].passes}
        for names in ((NAME, "fold-batchnorm-forward"), ("fold-batchnorm-forward",))
    )
    assert with_it["fold-batchnorm-forward"] == without["fold-batchnorm-forward"] + 3


def test_tail_less_in_float16_keeps_scale_and_shift_in_float32() -> None:
    before = exported(random_network("test_resnet", 8), 64, 96)
    names = [name for name in PASSES if name in (*TAIL_LESS, NAME)]
    wide, report = rewrite(before, names)
    half, _ = rewrite(to_fp16(wide), TYPED["tensorrt"])
    onnx.checker.check_model(half, full_check=True)
    graph = Graph(half)
    kinds = {name: kind for name, (kind, _) in graph.types().items()}
    plugins = [n for n in half.graph.node if n.op_type == OP_TYPE]
    assert len(plugins) == 6
    for plugin in plugins:
        taps, scale, shift = plugin.input
        assert (kinds[taps], kinds[plugin.output[0]]) == (TensorProto.FLOAT16,) * 2
        assert (kinds[scale], kinds[shift]) == (TensorProto.FLOAT,) * 2
    assert sum(n.op_type == "Cast" for n in half.graph.node) == 1  # of the picture
    image = np.random.default_rng(1).random((1, 3, 64, 96)).astype(np.float32)
    tail = HeadTail.from_json(graph.metadata()[TAIL_KEY], source="it")
    logits = finish(evaluated(half, image).astype(np.float64), tail)
    exact = evaluated(in_float64(before), image.astype(np.float64))
    assert np.abs(logits - exact).max() <= 0.02 * np.abs(exact).max()
    assert report.after.macs < report.before.macs


def test_no_runtime_is_given_it_by_default() -> None:
    assert set(PASSES) > NEEDING_PLUGIN
    assert not NEEDING_PLUGIN.intersection(*map(set, [*DEFAULT.values(), *TYPED.values(), PORTABLE, TAIL_LESS]))
