"""Precision lives in the ONNX: the same network with float16 tensors, float32 at its input and output.

TensorRT-RTX and TensorRT from 11 on are strongly typed: they compute in the types they are given. So an FP16 engine is
built from an FP16 ONNX, which this module makes.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from unetsharp_engines.contract import DEAD_VARIANCE
from unetsharp_engines.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx

    from unetsharp_engines.rewrites.graph import Graph

__all__ = ["precision_of", "settled", "to_fp16"]

_QUANTIZING = {"QuantizeLinear", "DequantizeLinear"}


def to_fp16(model: "onnx.ModelProto", islands: Collection[str] = ()) -> "onnx.ModelProto":
    """``model`` in float16 but for the nodes named in ``islands``, with float32 input and output.

    ``model`` is a float32 network, or an INT8 one: then its Q/DQ pairs and what reads them stay in float32, which costs
    nothing: TensorRT-RTX makes the same kernels of them as of float16 scales, which lose digits and want opset 19.
    A new model is returned; names, metadata and shapes stay. Cast nodes stand wherever types meet, once a tensor; two
    islands side by side speak float32 to each other. BatchNormalization is settled first, see `settled`. A node with
    a weight that float16 cannot hold is an island, too; the smallest weights are rounded as float16 has them, to zero
    from half its smallest number down.

    Raises InputError for a model that is in float16 already, and for weights that are no finite numbers, by name.
    """
    import onnx

    from unetsharp_engines.rewrites.graph import Graph

    if precision_of(model) == "fp16":
        raise InputError("the ONNX is fp16 already; FP16 is made from the fp32 ONNX that `unetsharp export` writes")
    graph = Graph(settled(model))
    _Conversion(graph, islands).run()
    converted = graph.model()
    onnx.checker.check_model(converted, full_check=True)
    return converted


def precision_of(model: "onnx.ModelProto") -> str:
    """``int8`` if the network holds quantizing nodes, ``fp16`` if it holds float16 weights, else ``fp32``."""
    from unetsharp_engines.quantization.rounding import has_float16

    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return "int8"
    return "fp16" if has_float16(model) else "fp32"


def settled(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """``model`` with every BatchNormalization folded, in float64, into one scale and one shift.

    Float16 resolves variances no finer than 6e-8. The channels that never moved in training
    (`contract.DEAD_VARIANCE`) become their shift. Raises InputError for weights that are no finite numbers, by name.
    """
    import numpy as np

    from unetsharp_engines.rewrites.graph import Graph, attributes

    graph = Graph(model)
    for name, array in graph.constants.items():
        if array.dtype == np.float32 and not np.isfinite(array).all():
            raise InputError(f"weight {name} holds numbers that are not finite; train again, or use earlier weights")
    for node in graph.nodes:
        if node.op_type == "BatchNormalization" and all(name in graph.constants for name in node.input[1:]):
            scale, shift, mean, variance = (graph.constants[name] for name in node.input[1:])
            folded = _folded(scale, shift, mean, variance, attributes(node).get("epsilon", 1e-5))
            names = [f"{node.output[0]}/{part}" for part in ("scale", "shift", "mean", "variance")]
            node.input[1:] = [graph.add_constant(n, a) for n, a in zip(names, folded, strict=True)]
    return graph.model()


def _folded(
    scale: "npt.NDArray[np.float32]",
    shift: "npt.NDArray[np.float32]",
    mean: "npt.NDArray[np.float32]",
    variance: "npt.NDArray[np.float32]",
    epsilon: float,
) -> "tuple[npt.NDArray[np.float32], ...]":
    """Scale, shift, mean 0 and variance 1 of the same BatchNormalization, all float32 [C], computed in float64."""
    import numpy as np

    s = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    s[variance < DEAD_VARIANCE] = 0.0
    t = shift - mean.astype(np.float64) * s
    parts = (s * np.sqrt(1.0 + epsilon), t, np.zeros_like(s), np.ones_like(s))
    return tuple(part.astype(np.float32) for part in parts)


class _Conversion:
    """One graph on its way to float16."""

    def __init__(self, graph: "Graph", islands: Collection[str]) -> None:
        import onnx

        self._graph, self._float16, self._float32 = graph, onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
        kinds = {name: kind for name, (kind, _) in graph.types().items()}
        self._floats = {name for name, kind in kinds.items() if kind == self._float32}
        self._wide = {id(node) for node in graph.nodes if self._stays_wide(node, islands)}
        self._kind = dict.fromkeys(self._floats.intersection(graph.inputs), self._float32)
        """Of every float value that is made."""

    def run(self) -> None:
        from unetsharp_engines.quantization.float16 import FLOAT32_INPUTS

        for node in list(self._graph.nodes):  # in order: types are inferred in it
            kind = self._float32 if id(node) in self._wide else self._float16
            for index, name in enumerate(node.input):
                if name in self._floats and index not in FLOAT32_INPUTS.get(node.op_type, ()):
                    node.input[index] = self._as(name, kind)
            self._retarget(node, kind)
            for name in set(node.output) & self._floats:
                self._kind[name] = kind
        for name in self._graph.outputs:
            self._widen_output(name)

    def _stays_wide(self, node: "onnx.NodeProto", islands: Collection[str]) -> bool:
        from unetsharp_engines.rewrites.graph import name_of

        makers = [self._graph.producer(name) for name in node.input]
        reads_pair = any(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)
        nothing_to_go_by = node.op_type != "Cast" and not self._floats.intersection(node.input)
        weights = [self._graph.constants[name] for name in node.input if name in self._graph.constants]
        return (
            name_of(node) in islands
            or node.op_type in _QUANTIZING
            or reads_pair
            or nothing_to_go_by
            or any(_overflows(weight) for weight in weights)
        )

    def _as(self, name: str, kind: int) -> str:
        """What holds ``name`` as ``kind``: itself, a Cast of it, or for a weight a copy."""
        import numpy as np

        if name in self._graph.constants:
            if kind == self._float32:
                return name
            return self._graph.add_constant(f"{name}/fp16", self._graph.constants[name].astype(np.float16))
        if self._kind[name] == kind:
            return name
        cast = f"{name}/{'fp16' if kind == self._float16 else 'fp32'}"
        if self._graph.producer(cast) is None:
            self._graph.add("Cast", [name], cast, to=kind)
        return cast

    def _retarget(self, node: "onnx.NodeProto", kind: int) -> None:
        """Let a Cast to float32 give ``kind``."""
        if node.op_type == "Cast" and set(node.output) & self._floats:
            node.attribute[0].i = kind

    def _widen_output(self, name: str) -> None:
        from onnx import helper

        if self._kind.get(name) != self._float16:
            return
        narrow = f"{name}/fp16"
        for node in self._graph.nodes:
            node.input[:] = [narrow if seen == name else seen for seen in node.input]
            node.output[:] = [narrow if seen == name else seen for seen in node.output]
        # By hand: the node that made it may be called as it is.
        self._graph.nodes.append(helper.make_node("Cast", [narrow], [name], name=f"{name}/fp32", to=self._float32))


def _overflows(weight: "npt.NDArray[Any]") -> bool:
    from unetsharp_engines.quantization.float16 import FLOAT16_MAX

    return weight.dtype == "float32" and bool(abs(weight).max(initial=0.0) > FLOAT16_MAX)
