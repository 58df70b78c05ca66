"""R4: an attention gate's two 1×1 convolutions as one."""

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from unetsharp_engines.rewrites.convolution import Convolution
from unetsharp_engines.rewrites.graph import Graph, name_of
from unetsharp_engines.rewrites.outcome import Outcome

__all__ = ["merge_gates"]


@dataclass(frozen=True, kw_only=True)
class _Gate:
    add: NodeProto
    signal: Convolution
    branch: Convolution


def merge_gates(graph: Graph) -> Outcome:
    """ReLU(A∗g + a + B∗x + b) becomes ReLU([A B]∗concat(g, x) + (a + b)): one convolution and no addition.

    Exact: a 1×1 convolution is a matrix on channels, and [A B](g, x) = A·g + B·x.
    """
    gates = [gate for node in graph.nodes if (gate := _gate(graph, node))]
    for gate in gates:
        _merge(graph, gate)
    return Outcome(
        sites=tuple(name_of(gate.add) for gate in gates),
        note="" if gates else "no sum of two 1×1 convolutions leads to a one-channel sigmoid",
    )


def _gate(graph: Graph, add: NodeProto) -> _Gate | None:
    if add.op_type != "Add" or not _leads_to_sigmoid(graph, add.output[0], ["Relu", "Conv", "Sigmoid"]):
        return None
    convs = [Convolution.read(graph, graph.producer(name)) for name in add.input]
    if any(c is None or not c.is_pointwise or not graph.is_read_only_by(c.node.output[0], add) for c in convs):
        return None
    signal, branch = convs
    assert signal is not None
    assert branch is not None
    return _Gate(add=add, signal=signal, branch=branch) if signal.node is not branch.node else None


def _leads_to_sigmoid(graph: Graph, value: str, ops: list[str]) -> bool:
    """Whether ``value`` goes through ``ops``, one after the other, and nowhere else."""
    for op in ops:
        readers = graph.consumers(value)
        if [reader.op_type for reader in readers] != [op] or not graph.is_read_only_by(value, *readers):
            return False
        value = readers[0].output[0]
    return True


def _merge(graph: Graph, gate: _Gate) -> None:
    name, old = name_of(gate.add), gate.signal.node
    kind = graph.constants[old.input[1]].dtype
    weight = np.concatenate([gate.signal.weight, gate.branch.weight], axis=1).astype(kind)
    bias = (gate.signal.bias + gate.branch.bias).astype(kind)
    both = graph.add("Concat", [old.input[0], gate.branch.node.input[0]], f"{name}/both", axis=1)
    weights = [graph.add_constant(f"{name}/weight", weight), graph.add_constant(f"{name}/bias", bias)]
    graph.remove(gate.add)
    graph.add("Conv", [both, *weights], gate.add.output[0], kernel_shape=[1, 1])
