"""Folding BatchNormalization into convolutions: the one before it, or those behind it that do not pad."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from unetsharp_engines.contract import DEAD_VARIANCE
from unetsharp_engines.rewrites.convolution import Convolution
from unetsharp_engines.rewrites.graph import Graph, Shape, attributes, name_of
from unetsharp_engines.rewrites.outcome import Outcome

__all__ = ["fold_into_consumers", "fold_into_producer", "scale_and_shift", "statistics_norms"]

_Vector = npt.NDArray[np.float64]

_WEIGHTED_MEANS = {"Resize", "Expand", "GlobalAveragePool", "AveragePool"}
"""Operations whose every output is a mean of inputs of its own channel, with weights that sum to one."""


_EPSILON = float(np.float32(1e-5))
"""ONNX's default; its attributes are float32."""


def fold_into_producer(graph: Graph) -> Outcome:
    """Conv → BatchNormalization becomes Conv (the encoder's, the gates').

    At run time BatchNormalization is x' = s·x + t per channel, s = scale / √(variance + epsilon) and
    t = shift - s·mean. With x = W∗a + b: x' = (s·W)∗a + (s·b + t), whatever the padding of a.
    """
    sites = []
    for node in _batchnorms(graph):
        conv = Convolution.read(graph, graph.producer(node.input[0]))
        if conv is None or not graph.is_read_only_by(node.input[0], node):
            continue
        s, t = scale_and_shift(graph, node)
        replace(conv, weight=conv.weight * s[:, None, None, None], bias=conv.bias * s + t).write(graph)
        _bypass(graph, node)
        sites.append(name_of(node))
    return Outcome(sites=tuple(sites), note="" if sites else "no BatchNorm follows a convolution directly")


def fold_into_consumers(graph: Graph) -> Outcome:
    """BatchNormalization → unpadded convolutions becomes those convolutions (ASPP → projection, d1 → the head's taps).

    With x' = s·x + t: W∗x' + b = (W·s)∗x + (b + Σ W·t), if no tap of W meets padding, which would be 0 and not t.
    Concat sets channels side by side, which only says which columns of W are meant. Resize, Expand and average pooling
    commute with x', as their weights sum to one. Folded only where every reader can take it. One with a dead channel
    (`contract.DEAD_VARIANCE`) stays, since a conversion to float16 must find it.
    """
    shapes = graph.shapes()
    sites: list[str] = []
    kept = dead = 0
    for node in _batchnorms(graph):
        readers = _readers(graph, shapes, node.output[0], 0)
        if not readers or _is_dead(graph, node):
            kept += 1
            dead += bool(readers)
            continue
        for reader, offset in readers:
            _absorb(graph, reader, offset, *scale_and_shift(graph, node))
        _bypass(graph, node)
        sites.append(name_of(node))
    return Outcome(
        sites=tuple(sites), note=_note(kept - dead, dead) or ("" if sites else "the graph holds no BatchNorm")
    )


def _note(bound: int, dead: int) -> str:
    padded = f"{bound} stay: a reader pads with zeros, or is no convolution" if bound else ""
    return "; ".join(filter(None, [padded, f"{dead} stay: they hold dead channels" if dead else ""]))


def _is_dead(graph: Graph, node: NodeProto) -> bool:
    """Whether any channel never moved in training."""
    return bool((graph.constants[node.input[4]] < DEAD_VARIANCE).any())


def statistics_norms(graph: Graph) -> list[NodeProto]:
    """BatchNormalization nodes with constant statistics and no dead channel, whose result is no output."""
    return [node for node in _batchnorms(graph) if not _is_dead(graph, node)]


def _batchnorms(graph: Graph) -> list[NodeProto]:
    """Those with constant statistics whose result is no output of the graph."""
    return [
        node
        for node in graph.nodes
        if node.op_type == "BatchNormalization"
        and all(name in graph.constants for name in node.input[1:])
        and not attributes(node).get("training_mode", 0)
        and node.output[0] not in graph.outputs
    ]


def scale_and_shift(graph: Graph, node: NodeProto) -> tuple[_Vector, _Vector]:
    """s and t, float64 [C], with which a BatchNormalization node at run time is x' = s·x + t."""
    scale, shift, mean, variance = (graph.constants[name].astype(np.float64) for name in node.input[1:])
    s = scale / np.sqrt(variance + attributes(node).get("epsilon", _EPSILON))
    return s, shift - s * mean


def _bypass(graph: Graph, node: NodeProto) -> None:
    graph.redirect(node.output[0], node.input[0])
    graph.remove(node)


def _readers(graph: Graph, shapes: dict[str, Shape], value: str, offset: int) -> list[tuple[NodeProto, int]] | None:
    """The unpadded convolutions that ``value`` ends in, and the input channel at which it starts in each; None if it
    ends in anything else. ``offset`` is the channel at which it starts in what was followed so far."""
    if value in graph.outputs:
        return None
    found: list[tuple[NodeProto, int]] = []
    for node in graph.consumers(value):
        further = _through(graph, shapes, node, value, offset)
        if further is None:
            return None
        found += further
    return found


def _through(
    graph: Graph, shapes: dict[str, Shape], node: NodeProto, value: str, offset: int
) -> list[tuple[NodeProto, int]] | None:
    if node.op_type == "Shape":
        return []  # the shape stays what it is
    if node.op_type == "Conv":
        conv = Convolution.read(graph, node)
        unpadded = conv is not None and conv.group == 1 and not any(conv.pads)
        return [(node, offset)] if unpadded and node.input[0] == value else None
    if node.op_type == "Concat" and attributes(node)["axis"] == 1 and list(node.input).count(value) == 1:
        before = [shapes[name][1] for name in node.input[: list(node.input).index(value)]]
        if None in before:
            return None
        return _readers(graph, shapes, node.output[0], offset + sum(n for n in before if n is not None))
    if node.op_type in _WEIGHTED_MEANS and _keeps_constants(node, shapes, value):
        return _readers(graph, shapes, node.output[0], offset)
    return None


def _keeps_constants(node: NodeProto, shapes: dict[str, Shape], value: str) -> bool:
    """Whether what is constant in ``value`` stays so: channels as they are, no zeros from outside."""
    given = attributes(node)
    same_channels = shapes.get(node.output[0], (None, None))[1] == shapes[value][1]
    inside = given.get("coordinate_transformation_mode") != "tf_crop_and_resize" and not any(given.get("pads", ()))
    return node.input[0] == value and same_channels and inside


def _absorb(graph: Graph, node: NodeProto, offset: int, s: _Vector, t: _Vector) -> None:
    conv = Convolution.read(graph, node)
    assert conv is not None
    weight, bias = conv.weight.copy(), conv.bias
    mine = slice(offset, offset + len(s))
    bias = bias + np.einsum("oihw,i->o", weight[:, mine], t)
    weight[:, mine] *= s[:, None, None]
    replace(conv, weight=weight, bias=bias).write(graph)
