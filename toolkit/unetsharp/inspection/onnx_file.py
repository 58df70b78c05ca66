"""An ONNX file: its tensors, operations, precision, and what one tile costs."""

import dataclasses
import hashlib
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetsharp.build.source import parse_onnx, read_file
from unetsharp.export.precision import precision_of
from unetsharp.inspection.parsing import parsers_of
from unetsharp_engines.contract import TILE
from unetsharp_engines.model_info import METADATA_KEY, ModelInfo
from unetsharp_engines.rewrites.plugin_node import is_plugin, stand_in

if TYPE_CHECKING:
    import onnx

__all__ = ["facts_of"]


def facts_of(path: Path) -> dict[str, Any]:
    """What the ONNX at ``path`` is. ``macs`` are multiply-accumulates of one tile, convolutions alone; ``parsers`` say
    which TensorRT takes it (`unetsharp.inspection.parsing`).

    Raises InputError for a file that is no whole ONNX.
    """
    import onnx

    content = read_file(path)
    model = parse_onnx(content, path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    info = ModelInfo.from_json(metadata.pop(METADATA_KEY), source=str(path)) if METADATA_KEY in metadata else None
    formats = Counter(onnx.TensorProto.DataType.Name(t.data_type).lower() for t in model.graph.initializer)
    inferred = _inferred(model, info.tile if info else TILE)
    return {
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "network": dataclasses.asdict(info) if info else None,
        "metadata": metadata,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "ir_version": model.ir_version,
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "inputs": [_tensor(value) for value in model.graph.input],
        "outputs": [_tensor(value) for value in model.graph.output],
        "precision": precision_of(model),
        "formats": dict(formats),
        "parameters": sum(math.prod(t.dims) for t in model.graph.initializer if t.dims),
        "macs": _macs(inferred),
        "operations": dict(Counter(node.op_type for node in model.graph.node).most_common()),
        "runs_on": _runs_on(model) if info else [],
        "parsers": parsers_of(model, content, _types(inferred)),
    }


def _runs_on(model: "onnx.ModelProto") -> list[str]:
    return ["tensorrt"] if any(map(is_plugin, model.graph.node)) else ["onnxruntime"]


def _tensor(value: "onnx.ValueInfoProto") -> dict[str, Any]:
    import onnx

    kind = value.type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim]
    return {"name": value.name, "dtype": onnx.TensorProto.DataType.Name(kind.elem_type).lower(), "shape": shape}


def _macs(inferred: "onnx.ModelProto") -> int | None:
    """Multiply-accumulates of the convolutions for one tile; None where shapes cannot be inferred."""
    known = (*inferred.graph.value_info, *inferred.graph.output)
    shapes = {value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim) for value in known}
    weights = {tensor.name: tensor.dims for tensor in inferred.graph.initializer}
    total = 0
    for node in inferred.graph.node:
        if node.op_type == "Conv":
            kernel, out = weights.get("".join(node.input[1:2])), shapes.get("".join(node.output))
            if not kernel or not out or not all(out):
                return None
            # Each output value takes one weight filter: kernel is [Cout, Cin / groups, kH, kW].
            total += math.prod(out) * math.prod(kernel[1:])
    return total


def _types(inferred: "onnx.ModelProto") -> dict[str, int]:
    """ONNX element type of each tensor, 0 where it stays unknown."""
    known = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    weights = {tensor.name: tensor.data_type for tensor in inferred.graph.initializer}
    return {value.name: value.type.tensor_type.elem_type for value in known} | weights


def _stand_in_for_plugins(graph: "onnx.GraphProto") -> None:
    """Let inference go on behind our own node, which ONNX does not know; one that is not as we write it stays."""
    lengths = {tensor.name: tensor.dims[0] for tensor in graph.initializer if len(tensor.dims) == 1}
    for node in filter(is_plugin, graph.node):
        channels = lengths.get("".join(node.input[1:2]))
        if channels and any(a.name == "factors" and a.ints for a in node.attribute):
            replaced, weight = stand_in(node, channels)
            node.CopyFrom(replaced)
            graph.input.append(weight)


def _inferred(model: "onnx.ModelProto", side: int) -> "onnx.ModelProto":
    """``model`` with every tensor's type and shape when one tile of ``side``² goes in; 0 where it stays unknown.

    A model that contradicts itself comes back without.
    """
    import onnx

    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    # Shapes that the exporter wrote down may hold symbols: infer them afresh.
    del fixed.graph.value_info[:]
    for value in fixed.graph.input:
        for dimension, size in zip(value.type.tensor_type.shape.dim, (1, 3, side, side), strict=False):
            if not dimension.dim_value or size == 1:
                dimension.dim_value = size
    _stand_in_for_plugins(fixed.graph)
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        return onnx.shape_inference.infer_shapes(fixed)
    except onnx.shape_inference.InferenceError:
        return fixed
