"""What a graph costs, counted from its shapes: multiply-accumulates and bytes moved per image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnx import NodeProto, TensorProto, helper

from unetsharp_engines.errors import InputError
from unetsharp_engines.rewrites.graph import Graph, Shape, attributes
from unetsharp_engines.rewrites.plugin_node import factor_of, is_plugin

__all__ = ["Cost", "node_costs", "total_cost"]

_FREE = {"Constant", "Expand", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Unsqueeze"}
"""Operations that move nothing in any runtime: views."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A cost per image."""

    macs: int = 0
    """Multiply-accumulates of Conv, MatMul and the plugin's sums; what is elementwise counts none, as is usual."""
    bytes: int = 0
    """Bytes that the nodes read and write, weights included, if each runs alone. Runtimes fuse, so they move less."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(macs=self.macs + other.macs, bytes=self.bytes + other.bytes)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(macs=self.macs - other.macs, bytes=self.bytes - other.bytes)


def total_cost(graph: Graph) -> Cost:
    """The cost of one image through the whole graph."""
    return sum((cost for _, cost in node_costs(graph)), Cost())


def node_costs(graph: Graph) -> list[tuple[NodeProto, Cost]]:
    """The cost of one image through each node that an output needs.

    Raises InputError if a shape is not fixed, but for the batch, which counts as one.
    """
    types = graph.types(batch=1)
    return [(node, Cost(macs=_macs(node, types), bytes=_bytes(node, types))) for node in graph.nodes]


_Types = dict[str, tuple[int, Shape]]


def _bytes(node: NodeProto, types: _Types) -> int:
    if node.op_type in _FREE:
        return 0
    return sum(_elements(name, types) * _item_bytes(types[name][0]) for name in (*node.input, *node.output) if name)


def _macs(node: NodeProto, types: _Types) -> int:
    if node.op_type == "Conv":
        _, per_output, *kernel = _shape(node.input[1], types)
        return _elements(node.output[0], types) * per_output * math.prod(kernel)
    if node.op_type == "MatMul":
        return _elements(node.output[0], types) * _shape(node.input[0], types)[-1]
    if is_plugin(node):  # along a row each shift mixes two columns, for three row shifts; down, each mixes two rows
        return _elements(node.output[0], types) * (18 + 6 * factor_of(node)) // factor_of(node)
    if node.op_type == "Gemm":
        inner = _shape(node.input[0], types)[0 if attributes(node).get("transA", 0) else 1]
        return _elements(node.output[0], types) * inner
    return 0


def _elements(name: str, types: _Types) -> int:
    return math.prod(_shape(name, types))


def _shape(name: str, types: _Types) -> Sequence[int]:
    if name not in types or None in types[name][1]:
        shape = types.get(name, (0, "unknown"))[1]
        raise InputError(f"the shape of {name} is {shape}; rewrites need an ONNX of fixed height and width")
    return [side for side in types[name][1] if side is not None]


def _item_bytes(elem_type: int) -> int:
    return 0 if elem_type == TensorProto.UNDEFINED else helper.tensor_dtype_to_np_dtype(elem_type).itemsize
