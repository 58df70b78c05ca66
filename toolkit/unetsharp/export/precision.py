"""Precision lives in the ONNX: the same network with float16 tensors, float32 at its input and output.

TensorRT-RTX and TensorRT from 11 on are strongly typed: they compute in the types they are given. So an FP16 engine is
built from an FP16 ONNX, which this module makes.
"""

from typing import TYPE_CHECKING

from unetsharp_engines.contract import DEAD_VARIANCE
from unetsharp_engines.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx

__all__ = ["precision_of", "to_fp16"]

_FP16_MAX = 65504.0
_FP16_TINY = 2.0**-24
"""Smallest positive float16."""


def to_fp16(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The float32 network ``model`` in float16, with float32 input and output: Cast nodes stand at both ends.

    A new model is returned; names, metadata and shapes stay. What float16 cannot hold is looked after: Resize scales
    stay float32; BatchNormalization is folded, in float64, into one scale and one shift, since float16 resolves
    variances no finer than 6e-8; its dead channels (`contract.DEAD_VARIANCE`) become their shift; weights up to half of
    float16's smallest number become zero.

    Raises InputError for a model that is not all float32, and for a weight that float16 cannot hold, by name.
    The conversion itself is `onnxruntime.transformers.float16`.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    if (seen := precision_of(model)) != "fp32":
        raise InputError(f"the ONNX is {seen} already; FP16 is made from the fp32 ONNX that `unetsharp export` writes")
    prepared = onnx.ModelProto()
    prepared.CopyFrom(model)
    _constants_to_weights(prepared.graph)
    _fold_batchnorms(prepared.graph)
    _fit_weights(prepared.graph)
    converted: onnx.ModelProto = convert_float_to_float16(prepared, keep_io_types=True, min_positive_val=_FP16_TINY)
    OnnxModel.graph_topological_sort(converted.graph)  # the converter appends Cast nodes at the end
    onnx.checker.check_model(converted, full_check=True)
    return converted


def precision_of(model: "onnx.ModelProto") -> str:
    """``int8`` if the network holds quantizing nodes, ``fp16`` if it holds float16 weights, else ``fp32``."""
    import onnx

    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return "int8"
    half = any(weights.data_type == onnx.TensorProto.FLOAT16 for weights in model.graph.initializer)
    return "fp16" if half else "fp32"


def _constants_to_weights(graph: "onnx.GraphProto") -> None:
    """Make Constant nodes' tensors initializers: TensorRT wants Resize scales there, and types are kept by use."""
    constants = [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]
    for node in constants:
        tensor = graph.initializer.add()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        graph.node.remove(node)
    del graph.value_info[:]  # stale now; the converter infers it again


def _fold_batchnorms(graph: "onnx.GraphProto") -> None:
    """Give every BatchNormalization mean 0 and variance 1, and the scale and shift that leave its output as it was."""
    from onnx import numpy_helper

    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "BatchNormalization" and all(name in weights for name in node.input[1:]):
            scale, shift, mean, variance = (numpy_helper.to_array(weights[name]) for name in node.input[1:])
            epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
            folded = _folded(scale, shift, mean, variance, epsilon)
            # Fresh names: two nodes may share one tensor.
            names = [f"{node.output[0]}/{part}" for part in ("scale", "shift", "mean", "variance")]
            graph.initializer.extend(numpy_helper.from_array(a, n) for a, n in zip(folded, names, strict=True))
            node.input[1:] = names
    _drop_unused(graph)


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


def _drop_unused(graph: "onnx.GraphProto") -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _fit_weights(graph: "onnx.GraphProto") -> None:
    """Zero what rounds to zero in float16 (the converter would raise it to `_FP16_TINY`); refuse what overflows."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        largest = float(np.abs(values).max(initial=0.0))
        if not largest <= _FP16_MAX:  # not a number, too
            raise InputError(f"weight {tensor.name} holds {largest:g}; float16 ends at {_FP16_MAX:g}: use fp32")
        fitted = np.where(np.abs(values) <= _FP16_TINY / 2, np.float32(0), values)
        tensor.CopyFrom(numpy_helper.from_array(fitted.astype(np.float32), tensor.name))
