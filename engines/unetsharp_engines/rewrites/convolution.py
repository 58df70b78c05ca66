"""A 2-D convolution read from a graph, its weights as arrays, and written back changed."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, helper

from unetsharp_engines.rewrites.graph import Array, Graph, attributes, name_of

__all__ = ["Convolution"]

_Weights = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """One Conv node with constant weights; its arithmetic is float64, whatever the graph's type."""

    node: NodeProto
    weight: _Weights
    """[output channels, input channels / group, kernel rows, kernel columns]."""
    bias: _Weights
    """[output channels]; zeros where the node has none."""
    pads: tuple[int, int, int, int]
    """Rows above, columns left, rows below, columns right."""
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    group: int = 1

    @classmethod
    def read(cls, graph: Graph, node: NodeProto | None) -> "Convolution | None":
        """``node`` as a convolution; None if it is none, or none with constant 2-D weights and explicit padding."""
        if node is None or node.op_type != "Conv" or node.input[1] not in graph.constants:
            return None
        weight = graph.constants[node.input[1]]
        given = attributes(node)
        bias_name = node.input[2] if len(node.input) > 2 else ""
        if weight.ndim != 4 or given.get("auto_pad", "NOTSET") != "NOTSET" or (bias_name not in {"", *graph.constants}):
            return None
        return cls(
            node=node,
            weight=weight.astype(np.float64),
            bias=graph.constants[bias_name].astype(np.float64) if bias_name else np.zeros(len(weight)),
            pads=tuple(given.get("pads", (0, 0, 0, 0))),
            strides=tuple(given.get("strides", (1, 1))),
            dilations=tuple(given.get("dilations", (1, 1))),
            group=given.get("group", 1),
        )

    @property
    def kernel(self) -> tuple[int, int]:
        """Rows and columns of the kernel."""
        rows, columns = self.weight.shape[2:]
        return rows, columns

    @property
    def is_pointwise(self) -> bool:
        """Whether it is 1×1, ungrouped, unpadded and of stride 1: a matrix applied to each pixel."""
        return (self.kernel, self.pads, self.strides, self.group) == ((1, 1), (0, 0, 0, 0), (1, 1), 1)

    def write(self, graph: Graph) -> None:
        """Give the node in ``graph`` these weights and attributes, under names that no other node shares."""
        kind = graph.constants[self.node.input[1]].dtype
        names = [
            _own(graph, self.node, part, array.astype(kind))
            for part, array in (("weight", self.weight), ("bias", self.bias))
        ]
        self.node.input[1:] = names
        del self.node.attribute[:]
        fields = {
            "kernel_shape": self.kernel,
            "pads": self.pads,
            "strides": self.strides,
            "dilations": self.dilations,
            "group": self.group,
        }
        self.node.attribute.extend(helper.make_attribute(name, value) for name, value in fields.items())


def _own(graph: Graph, node: NodeProto, part: str, array: Array) -> str:
    return graph.add_constant(f"{name_of(node)}/{part}", array)
