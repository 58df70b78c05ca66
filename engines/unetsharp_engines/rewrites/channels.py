"""Channels that hold the same number everywhere, whatever the picture: not computed any more."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import NodeProto

from unetsharp_engines.rewrites.batchnorm import scale_and_shift
from unetsharp_engines.rewrites.convolution import Convolution
from unetsharp_engines.rewrites.graph import Graph, Shape, attributes, name_of
from unetsharp_engines.rewrites.outcome import Outcome

__all__ = ["drop_constant_channels"]

_POINTWISE: dict[str, Callable[[float], float]] = {
    "Relu": lambda x: max(x, 0.0),
    "Sigmoid": lambda x: float(0.5 + 0.5 * np.tanh(0.5 * x)),
    "Softplus": lambda x: float(np.logaddexp(0.0, x)),
    "Tanh": lambda x: float(np.tanh(x)),
    "Mish": lambda x: float(x * np.tanh(np.logaddexp(0.0, x))),
}

_KEEPS_VALUE = {"Resize", "MaxPool", "GlobalAveragePool"}
"""Operations that make a constant channel of a constant channel: weighted means and maxima inside the picture."""


def drop_constant_channels(graph: Graph) -> Outcome:
    """Take out output channels of convolutions whose weights are all zero, as pruning leaves them.

    Such a channel is its bias b at every pixel; what pointwise operations, BatchNorm, Resize and pooling make of it
    is a number v at every pixel, too. A convolution that reads it adds v·ΣW, a number, to each of its outputs, if
    v = 0 or if it does not pad (else v would be missing at the border): that sum goes into its bias, and the channel
    is gone. Channels that end in anything else stay.
    """
    sites: list[str] = []
    kept = 0
    for node in list(graph.nodes):
        dropped, left = _drop_from(graph, node)
        kept += left
        sites += [name_of(node)] * bool(dropped)
    note = f"{kept} constant channels stay: a reader pads, or cannot do without them" if kept else ""
    return Outcome(sites=tuple(sites), note=note or ("" if sites else "no convolution makes a constant channel"))


@dataclass
class _Track:
    """A constant channel, followed from where it is made to the convolutions that read it."""

    source: Convolution
    at: dict[str, tuple[int, float]]
    """Values that hold it: in which channel, and what it is there."""
    norms: list[tuple[NodeProto, int]] = field(default_factory=list)
    """BatchNorms it goes through, and as which channel."""
    readers: list[tuple[Convolution, int, float]] = field(default_factory=list)
    """Convolutions that read it, as which channel, and what it is."""


def _drop_from(graph: Graph, node: NodeProto) -> tuple[int, int]:
    """Drop what can be dropped of one convolution's constant channels; how many were, and how many were not."""
    dropped = kept = 0
    for channel in _constant_channels(Convolution.read(graph, node)):
        track = _followed(graph, node, channel)
        if track is None:
            kept += 1
        else:
            _drop(graph, track, channel)
            dropped += 1
    return dropped, kept


def _constant_channels(conv: Convolution | None) -> Iterator[int]:
    """Output channels without weights, last first: dropping one leaves the numbers of those to come. One must stay."""
    if conv is not None and conv.group == 1:
        constant = np.flatnonzero(~conv.weight.any(axis=(1, 2, 3)))
        yield from (int(channel) for channel in constant[::-1][: len(conv.weight) - 1])


def _followed(graph: Graph, node: NodeProto, channel: int) -> _Track | None:
    """Where the channel goes; None if it cannot be dropped everywhere."""
    source = Convolution.read(graph, node)
    assert source is not None
    shapes = graph.shapes()  # from here on nodes stand behind what they read
    track = _Track(source=source, at={node.output[0]: (channel, float(source.bias[channel]))})
    for reader in graph.nodes:
        holding = [name for name in reader.input if name in track.at]
        if holding and not _follow(graph, shapes, track, reader, holding):
            return None
    return None if track.at.keys() & set(graph.outputs) else track


def _follow(graph: Graph, shapes: dict[str, Shape], track: _Track, node: NodeProto, holding: list[str]) -> bool:
    """Follow the channel through ``node``, which reads it as ``holding``; False if it cannot be dropped there."""
    channel, value = track.at[holding[0]]
    if node.op_type == "Conv":
        return _read_by(graph, track, node, channel, value)
    if node.op_type == "BatchNormalization" and holding[0] == node.input[0] and len(holding) == 1:
        s, t = scale_and_shift(graph, node)
        track.norms.append((node, channel))
        track.at[node.output[0]] = channel, float(s[channel] * value + t[channel])
    elif node.op_type in _POINTWISE:
        track.at[node.output[0]] = channel, _POINTWISE[node.op_type](value)
    elif (
        node.op_type in _KEEPS_VALUE and attributes(node).get("coordinate_transformation_mode") != "tf_crop_and_resize"
    ):
        track.at[node.output[0]] = channel, value
    elif node.op_type == "Concat" and attributes(node)["axis"] == 1 and len(holding) == 1:
        before = [shapes[name][1] for name in node.input[: list(node.input).index(holding[0])]]
        track.at[node.output[0]] = channel + sum(n or 0 for n in before), value
    elif node.op_type == "Mul" and (product := _product(shapes, track, node, holding)) is not None:
        track.at[node.output[0]] = channel, product
    else:
        return False
    return True


def _looks_outside(node: NodeProto) -> bool:
    return attributes(node).get("coordinate_transformation_mode") == "tf_crop_and_resize"


def _read_by(graph: Graph, track: _Track, node: NodeProto, channel: int, value: float) -> bool:
    conv = Convolution.read(graph, node)
    if conv is None or conv.group != 1 or (any(conv.pads) and value != 0.0) or conv.weight.shape[1] == 1:
        return False
    track.readers.append((conv, channel, value))
    return True


def _product(shapes: dict[str, Shape], track: _Track, node: NodeProto, holding: list[str]) -> float | None:
    """What Mul makes of the channel: of two such, or of zero with a one-channel map; None if that is no constant."""
    value = track.at[holding[0]][1]
    if len(holding) == 2:
        return value * track.at[holding[1]][1]
    (other,) = [name for name in node.input if name not in holding]
    one_channel = len(shapes.get(other, ())) == 4 and shapes[other][1] == 1
    return 0.0 if value == 0.0 and one_channel else None


def _drop(graph: Graph, track: _Track, channel: int) -> None:
    source = track.source
    weight, bias = np.delete(source.weight, channel, axis=0), np.delete(source.bias, channel)
    replace(source, weight=weight, bias=bias).write(graph)
    for node, at in track.norms:
        node.input[1:] = [
            graph.add_constant(f"{name_of(node)}/{i}", np.delete(graph.constants[name], at))
            for i, name in enumerate(node.input[1:])
        ]
    for conv, at, value in track.readers:
        bias = conv.bias + value * conv.weight[:, at].sum(axis=(1, 2))
        replace(conv, weight=np.delete(conv.weight, at, axis=1), bias=bias).write(graph)
