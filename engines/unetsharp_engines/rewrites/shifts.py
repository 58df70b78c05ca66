"""R1: BatchNorms between Mish and a padded convolution, absorbed by it with channels that carry their shift."""

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from unetsharp_engines.rewrites.batchnorm import scale_and_shift, statistics_norms
from unetsharp_engines.rewrites.convolution import Convolution
from unetsharp_engines.rewrites.graph import Graph, Shape, attributes, name_of
from unetsharp_engines.rewrites.outcome import Outcome

__all__ = ["carry_shifts"]

_Array = npt.NDArray[np.float64]

_CHANNELS = 8
"""Of a widened gate: what tensor cores read at once, and memory holds for one channel anyway."""
_ONE = 40.0
"""Its sigmoid is 1 in every format up to float64."""


@dataclass(frozen=True, kw_only=True)
class _Use:
    """Where a BatchNorm's output ends: in a convolution, as the input channels from ``offset`` on."""

    conv: NodeProto
    offset: int
    gate: NodeProto | None = None
    """The Sigmoid whose map multiplies it on the way."""
    concat: NodeProto | None = None
    """The Concat that it goes through; None where the convolution reads it directly, and then does not pad."""


def carry_shifts(graph: Graph) -> Outcome:
    """BatchNorms of a decoder node's branches become part of its 3×3 convolution of all branches.

    At run time a BatchNorm is x' = s·x + t. Scales fold into the weights of whatever convolution reads x', padded or
    not, for the padding's zeros stay zeros. A shift does not: at the border the padding is 0 and not t. But

        W ∗ (g·(s·x + t)) = (W·s) ∗ (g·x) + (Σ W·t) ∗ g

    where g, one channel, is the map by which a gate multiplies the branch, or 1 for branches without a gate; both are
    padded with zeros alike. So the shifts of all branches need one channel per gate and one of ones beside the others.
    Both come from the gates: the 1×1 convolution before a gate's sigmoid is given seven more channels of weight 0 and
    bias 40, whose sigmoid is 1. Convolutions that do not pad, as the gates' own, absorb scale and shift as they are.
    """
    shapes = graph.shapes()
    folded: list[tuple[NodeProto, list[_Use]]] = []
    kept = 0
    for norm in statistics_norms(graph):
        uses = _uses(graph, shapes, norm)
        if uses and any(use.concat is not None for use in uses):
            folded.append((norm, uses))
        else:
            kept += 1
    for kernels in _absorbed(graph, folded).values():
        _carry(graph, kernels)
    note = f"{kept} stay: a reader is neither their node's convolution nor one without padding" if kept else ""
    return Outcome(
        sites=tuple(name_of(norm) for norm, _ in folded), note=note or ("" if folded else "there is no BatchNorm")
    )


@dataclass(kw_only=True)
class _Carried:
    """The kernels [O, kh, kw] that a convolution applies to the gates' maps, by the Sigmoid's name, and to ones."""

    conv: NodeProto
    concat: NodeProto
    by_gate: dict[str, _Array]
    ones: _Array


def _uses(graph: Graph, shapes: dict[str, Shape], norm: NodeProto) -> list[_Use] | None:
    """All ends of a BatchNorm's output; None if one of them cannot absorb it."""
    found = []
    for reader in graph.consumers(norm.output[0]):
        if reader.op_type == "Shape":
            continue
        use = _use(graph, shapes, norm.output[0], reader)
        if use is None:
            return None
        found.append(use)
    return found


def _use(graph: Graph, shapes: dict[str, Shape], value: str, reader: NodeProto) -> _Use | None:
    if reader.op_type == "Conv":
        conv = Convolution.read(graph, reader)
        unpadded = conv is not None and conv.group == 1 and not any(conv.pads) and reader.input[0] == value
        return _Use(conv=reader, offset=0) if unpadded else None
    gate = None
    if reader.op_type == "Mul":
        gate = _gate(graph, reader, value)
        following = graph.consumers(reader.output[0])
        if gate is None or len(following) != 1 or not graph.is_read_only_by(reader.output[0], following[0]):
            return None
        value, reader = reader.output[0], following[0]
    return _through_concat(graph, shapes, value, reader, gate)


def _through_concat(
    graph: Graph, shapes: dict[str, Shape], value: str, concat: NodeProto, gate: NodeProto | None
) -> _Use | None:
    if concat.op_type != "Concat" or attributes(concat)["axis"] != 1 or list(concat.input).count(value) != 1:
        return None
    following = graph.consumers(concat.output[0])
    conv = Convolution.read(graph, following[0]) if len(following) == 1 else None
    before = [shapes[name][1] for name in concat.input[: list(concat.input).index(value)]]
    if conv is None or conv.group != 1 or None in before or not _gates_into(graph, concat):
        return None
    if not graph.is_read_only_by(concat.output[0], conv.node):
        return None
    return _Use(conv=conv.node, offset=sum(n or 0 for n in before), gate=gate, concat=concat)


def _gates_into(graph: Graph, concat: NodeProto) -> list[NodeProto]:
    """The Sigmoids that gate inputs of ``concat``, which can make the channel of ones."""
    makers = (graph.producer(name) for name in concat.input)
    gates = (_gate_of(graph, maker) for maker in makers if maker is not None and maker.op_type == "Mul")
    return [gate for gate in gates if gate is not None]


def _gate_of(graph: Graph, product: NodeProto) -> NodeProto | None:
    found = (_gate(graph, product, name) for name in product.input)
    return next((gate for gate in found if gate is not None), None)


def _gate(graph: Graph, product: NodeProto, value: str) -> NodeProto | None:
    """The Sigmoid behind a 1×1 convolution to one channel that ``product`` multiplies ``value`` by."""
    (other,) = [name for name in product.input if name != value] or [""]
    sigmoid = graph.producer(other)
    if sigmoid is None or sigmoid.op_type != "Sigmoid" or not graph.is_read_only_by(other, product):
        return None
    conv = Convolution.read(graph, graph.producer(sigmoid.input[0]))
    alone = conv is not None and graph.is_read_only_by(sigmoid.input[0], sigmoid)
    return sigmoid if alone and conv is not None and conv.is_pointwise and len(conv.weight) == 1 else None


def _absorbed(graph: Graph, folded: list[tuple[NodeProto, list[_Use]]]) -> dict[str, _Carried]:
    """Take the BatchNorms out, scales into weights; returns what remains of their shifts by convolution."""
    carried: dict[str, _Carried] = {}
    for norm, uses in folded:
        s, t = scale_and_shift(graph, norm)
        for use in uses:
            _absorb(graph, use, s, t, carried)
        graph.redirect(norm.output[0], norm.input[0])
        graph.remove(norm)
    return carried


def _absorb(graph: Graph, use: _Use, s: _Array, t: _Array, carried: dict[str, _Carried]) -> None:
    conv = Convolution.read(graph, use.conv)
    assert conv is not None
    mine = slice(use.offset, use.offset + len(s))
    shift = np.einsum("oihw,i->ohw", conv.weight[:, mine], t)
    weight = conv.weight.copy()
    weight[:, mine] *= s[:, None, None]
    bias = conv.bias
    if use.concat is None:
        bias = bias + shift.sum(axis=(1, 2))
    else:
        kernels = carried.setdefault(
            use.conv.output[0],
            _Carried(
                conv=use.conv, concat=use.concat, by_gate=defaultdict(lambda: np.zeros(())), ones=np.zeros_like(shift)
            ),
        )
        if use.gate is None:
            kernels.ones = kernels.ones + shift
        else:
            kernels.by_gate[use.gate.output[0]] = kernels.by_gate[use.gate.output[0]] + shift
    replace(conv, weight=weight, bias=bias).write(graph)


def _carry(graph: Graph, kernels: _Carried) -> None:
    """Append the gates' maps, widened, to the concatenation, and their kernels to the convolution."""
    conv = Convolution.read(graph, kernels.conv)
    assert conv is not None
    parts = [conv.weight]
    for index, gate in enumerate(_gates_into(graph, kernels.concat)):
        extra = np.zeros((len(conv.weight), _CHANNELS, *conv.kernel))
        extra[:, 0] = kernels.by_gate[gate.output[0]]
        extra[:, 1] = kernels.ones if index == 0 else 0.0
        parts.append(extra)
        kernels.concat.input.append(_widened(graph, gate))
    replace(conv, weight=np.concatenate(parts, axis=1)).write(graph)


def _widened(graph: Graph, gate: NodeProto) -> str:
    """Let ``gate`` make seven channels of ones behind its own, for which its readers get a slice; returns all eight."""
    conv = Convolution.read(graph, graph.producer(gate.input[0]))
    assert conv is not None
    missing = _CHANNELS - 1
    weight = np.pad(conv.weight, ((0, missing), (0, 0), (0, 0), (0, 0)))
    replace(conv, weight=weight, bias=np.pad(conv.bias, (0, missing), constant_values=_ONE)).write(graph)
    own = f"{name_of(gate)}/own"
    graph.redirect(gate.output[0], own)
    first, second, axis = (graph.add_constant(f"int64_{i}", np.array([i], np.int64)) for i in (0, 1, 1))
    graph.add("Slice", [gate.output[0], first, second, axis], own)
    return str(gate.output[0])
