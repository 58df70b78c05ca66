"""What float16 does to a float32 network, in one pass over pictures: overflow, lost digits, and whose noise it is."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper

from unetsharp_engines.contract import INPUT_NAME
from unetsharp_engines.quantization.calibration import session, with_outputs
from unetsharp_engines.rewrites import plugin_node
from unetsharp_engines.rewrites.graph import Graph, attributes, name_of

__all__ = ["FLOAT16_MAX", "FLOAT16_NORMAL", "FLOAT32_INPUTS", "Float16Scan", "Range", "blocks"]

FLOAT16_MAX = 65504.0
"""Largest float16."""

FLOAT16_NORMAL = 2.0**-14
"""Smallest float16 of full precision; below, digits are lost one by one."""

_MOVING = {
    "Concat", "Expand", "Flatten", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operations that compute nothing: what they give is as exact as what they are given."""

FLOAT32_INPUTS = {"Resize": (1, 2), plugin_node.OP_TYPE: plugin_node.FLOAT32_INPUTS}
"""Inputs that are wanted in float32, whatever the tensor's type: region and scales by ONNX, scale and shift by ours."""

_SUMS = ("largest", "small", "noise", "signal")


@dataclass(frozen=True, kw_only=True)
class Range:
    """The values of a tensor over all pictures."""

    largest: float
    """Largest |x|."""
    small: float
    """Share of values that are not zero but below `FLOAT16_NORMAL`, 0 to 1."""


def blocks(graph: Graph) -> dict[str, str]:
    """By node: the block it belongs to, named after its convolution.

    A block is a convolution and what follows it, up to the next: its activation and BatchNorm, which keep each other's
    digits if they stay in one precision. What joins several blocks belongs to that of its first input; what comes
    before any convolution makes a block of its own. Puts the graph's nodes in order.
    """
    graph.prune()
    made_in: dict[str, str] = {}
    block: dict[str, str] = {}
    for node in graph.nodes:
        before = next((made_in[name] for name in node.input if name in made_in), name_of(node))
        block[name_of(node)] = name_of(node) if node.op_type == "Conv" else before
        made_in |= dict.fromkeys(node.output, block[name_of(node)])
    return block


class Float16Scan:
    """Ranges of all tensors, and for each block the noise that float16 makes in it.

    The float32 network runs once, and beside each operation a second one that is given the same input and weights,
    rounded to float16; its output is rounded, too. What the two differ by is the noise of that operation alone; of a
    block, that of its worst operation counts. Only sums leave the graph, so memory does not grow with the pictures.
    """

    def __init__(self, model: ModelProto, *, threads: int | None = None) -> None:
        """``model`` is the network in float32."""
        graph = Graph(model)
        self._block = blocks(graph)
        kinds = {name: kind for name, (kind, _) in graph.types().items()}
        self._floats = {name for name, kind in kinds.items() if kind == TensorProto.FLOAT}
        self._probed = [n for n in graph.nodes if n.op_type not in _MOVING and self._floats & {*n.input}]
        self._probed = [n for n in self._probed if n.output[0] in self._floats and n.op_type != "Cast"]
        self._values = np.zeros((len(self._probed), len(_SUMS)))
        self._pixels = np.zeros(len(self._probed))
        outputs = [f"{name_of(node)}/half/{kind}" for node in self._probed for kind in (*_SUMS, "count")]
        self._outputs = outputs
        self._session = session(self._probe(model), threads)

    def feed(self, x_NCHW: npt.NDArray[np.float32]) -> None:
        """Add a batch, as `runtimes.base.network_input` makes it."""
        found = np.asarray(self._session.run(self._outputs, {INPUT_NAME: x_NCHW}), np.float64).reshape(-1, 5)
        self._values[:, 0] = np.fmax(self._values[:, 0], found[:, 0])
        self._values[:, 1:] += found[:, 1:4]
        self._pixels += found[:, 4]

    def ranges(self) -> dict[str, Range]:
        """By tensor, of those that are computed."""
        rows = zip(self._probed, self._values, self._pixels, strict=True)
        return {n.output[0]: Range(largest=float(v[0]), small=float(v[1] / max(p, 1.0))) for n, v, p in rows}

    def noise_to_signal(self) -> dict[str, float]:
        """By block: squared noise over squared signal, 0 or more; infinite where float16 overflows."""
        worst = dict.fromkeys(self._block.values(), 0.0)
        for node, (_, _, noise, signal) in zip(self._probed, self._values, strict=True):
            ratio = noise / signal if signal > 0 else (np.inf if noise > 0 else 0.0)
            block = self._block[name_of(node)]
            worst[block] = max(worst[block], float(ratio) if np.isfinite(ratio) else np.inf)
        return worst

    def _probe(self, model: ModelProto) -> ModelProto:
        graph = Graph(with_outputs(model, self._outputs))
        kept = {name_of(node) for node in self._probed}
        for node in [n for n in graph.nodes if name_of(n) in kept]:
            self._add_probe(graph, node)
        return graph.model()

    def _add_probe(self, graph: Graph, node: NodeProto) -> None:
        name, value = f"{name_of(node)}/half", node.output[0]
        wide = FLOAT32_INPUTS.get(node.op_type, ())
        inputs = [
            self._narrowed(graph, seen) if seen in self._floats and index not in wide else seen
            for index, seen in enumerate(node.input)
        ]
        outputs = [f"{name}/{index}" for index in range(len(node.output))]
        graph.nodes.append(helper.make_node(node.op_type, inputs, outputs, name=name, **attributes(node)))
        error = graph.add("Sub", [self._narrowed(graph, outputs[0]), value], f"{name}/error")
        graph.add("ReduceSumSquare", [error], f"{name}/noise", keepdims=0)
        graph.add("ReduceSumSquare", [value], f"{name}/signal", keepdims=0)
        magnitude = graph.add("Abs", [value], f"{name}/magnitude")
        graph.add("ReduceMax", [magnitude], f"{name}/largest", keepdims=0)
        self._add_counts(graph, name, magnitude)

    def _add_counts(self, graph: Graph, name: str, magnitude: str) -> None:
        """How many values there are, and how many are small but not zero."""
        normal = graph.add_constant("float16_normal", np.array(FLOAT16_NORMAL, np.float32))
        zero = graph.add_constant("float_zero", np.array(0, np.float32))
        below = graph.add("Less", [magnitude, normal], f"{name}/below")
        above = graph.add("Greater", [magnitude, zero], f"{name}/above")
        both = graph.add("And", [below, above], f"{name}/both")
        ones = graph.add("Cast", [both], f"{name}/ones", to=TensorProto.FLOAT)
        graph.add("ReduceSum", [ones], f"{name}/small", keepdims=0)
        size = graph.add("Size", [magnitude], f"{name}/size")
        graph.add("Cast", [size], f"{name}/count", to=TensorProto.FLOAT)

    def _narrowed(self, graph: Graph, value: str) -> str:
        """``value`` rounded to float16, in float32."""
        if value in graph.constants:
            with np.errstate(over="ignore"):
                rounded = graph.constants[value].astype(np.float16).astype(np.float32)
            return graph.add_constant(f"{value}/half", rounded)
        narrow = f"{value}/half/narrow"
        if graph.producer(narrow) is None:
            graph.add("Cast", [value], narrow, to=TensorProto.FLOAT16)
            graph.add("Cast", [narrow], f"{narrow}/wide", to=TensorProto.FLOAT)
        return f"{narrow}/wide"
