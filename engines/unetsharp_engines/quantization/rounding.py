"""Float16 for a processor that has none: the network in float32, with every rounding to float16 spelled out.

ONNX Runtime's CPU provider has float16 kernels for next to nothing. It computes such a network in float32, and drops
the conversions in between: what it says of a float16 network is what the float32 network says, and an overflow does not
show. A GPU rounds every tensor that it stores (and accumulates in float32). So whoever wants to know on a CPU what a
float16 network does must have it computed as `spelled_out` writes it.
"""

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from unetsharp_engines.rewrites.graph import Graph

__all__ = ["has_float16", "spelled_out"]

_EXACT = {
    "Concat", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Relu", "Reshape", "Slice", "Squeeze", "Transpose",
    "Unsqueeze",
}  # fmt: skip
"""Operations that give only numbers they are given, or zero: nothing is to round."""


def has_float16(model: ModelProto) -> bool:
    """Whether a network holds float16 weights."""
    return any(weight.data_type == TensorProto.FLOAT16 for weight in model.graph.initializer)


def spelled_out(model: ModelProto) -> ModelProto:
    """``model`` in float32 tensors that hold float16 numbers wherever ``model`` has float16 tensors.

    A copy; one without float16 tensors is returned as it is. Sums inside an operation are float32's, as on a GPU.
    """
    graph = Graph(model)
    halves = {name for name, (kind, _) in graph.types().items() if kind == TensorProto.FLOAT16}
    if not halves:
        return model
    for name in halves & graph.constants.keys():
        graph.constants[name] = graph.constants[name].astype(np.float32)
    for node in list(graph.nodes):
        _spell(graph, node, halves)
    return graph.model()


def _spell(graph: Graph, node: NodeProto, halves: set[str]) -> None:
    if node.op_type == "Cast" and halves & {*node.input, *node.output}:
        to_half = node.attribute[0].i == TensorProto.FLOAT16
        node.attribute[0].i = TensorProto.FLOAT if to_half else node.attribute[0].i
    if node.op_type not in _EXACT:
        for index, name in enumerate(node.output):
            if name in halves:
                node.output[index] = f"{name}/float32"
                graph.nodes += _rounding(f"{name}/float32", name)


def _rounding(exact: str, rounded: str) -> list[NodeProto]:
    """``exact``, float32, to float16 and back."""
    half = f"{rounded}/float16"
    return [
        helper.make_node("Cast", [exact], [half], name=half, to=TensorProto.FLOAT16),
        helper.make_node("Cast", [half], [rounded], name=f"{rounded}/rounded", to=TensorProto.FLOAT),
    ]
