"""What a bundle says of its network beside the tensors: contract, stain target, layers' precision, what INT8 cost."""

from typing import TYPE_CHECKING, Any

from unetsharp.build.strict_json import parse_object
from unetsharp_engines.contract import BYTES_TO_UNIT, CLASSES, INPUT_NAME, OUTPUT_NAME
from unetsharp_engines.errors import InputError
from unetsharp_engines.model_info import QUANTIZATION_KEY
from unetsharp_engines.stain.target import TARGET_MAX_CONCENTRATIONS, TARGET_STAINS, WHITE

if TYPE_CHECKING:
    import onnx

__all__ = ["contract_facts", "layer_precisions", "quantization_facts", "stain_target_facts"]

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operations whose second input holds weights."""


def contract_facts() -> dict[str, Any]:
    """What of `unetsharp_engines.contract` decides the meaning of numbers that go in and come out, for JSON."""
    return {
        "input": INPUT_NAME,
        "bytes_to_unit": BYTES_TO_UNIT,
        "output": OUTPUT_NAME,
        "channels": [tissue.name for tissue in CLASSES],
        "labels": {tissue.name: tissue.label for tissue in CLASSES},
    }


def stain_target_facts() -> dict[str, Any]:
    """The appearance that pictures are normalized to (`unetsharp_engines.stain.target`), for JSON."""
    return {
        "white": WHITE,
        "stains": TARGET_STAINS.tolist(),
        "max_concentrations": TARGET_MAX_CONCENTRATIONS.tolist(),
    }


def layer_precisions(model: "onnx.ModelProto") -> dict[str, str]:
    """Precision of each layer with weights, by name, where not all are alike; nothing where they are.

    ``int8`` is a layer whose weights come from a DequantizeLinear, be it through a Cast; others compute in the format
    in which their weights reach them.
    """
    makers = {node.output[0]: node for node in model.graph.node if node.output}
    formats = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    layers = {
        node.name or node.output[0]: _precision_of(node.input[1], makers, formats)
        for node in model.graph.node
        if node.op_type in _WEIGHTED and len(node.input) > 1
    }
    known = {name: precision for name, precision in layers.items() if precision}
    return known if len(set(known.values())) > 1 else {}


def _precision_of(weights: str, makers: dict[str, "onnx.NodeProto"], formats: dict[str, int]) -> str:
    """Of a layer with ``weights``; empty where they are none, but computed from pictures."""
    import onnx

    names: dict[int, str] = {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16"}
    if weights in formats:
        return names.get(formats[weights], "")
    maker = makers.get(weights)
    if maker is None or maker.op_type not in ("Cast", "DequantizeLinear"):
        return ""
    if maker.op_type == "DequantizeLinear":
        return "int8"
    stored = _precision_of(maker.input[0], makers, formats)
    return "int8" if stored == "int8" else stored and names.get(maker.attribute[0].i, "")


def quantization_facts(model: "onnx.ModelProto") -> dict[str, Any] | None:
    """What ``unetsharp quantize`` left in the ONNX of calibration and drift; None where it was not quantized so.

    Raises InputError for a record that is no JSON object.
    """
    found = [entry.value for entry in model.metadata_props if entry.key == QUANTIZATION_KEY]
    try:
        return parse_object(found[0].encode()) if found else None
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"the ONNX's record of its quantization cannot be read ({error}); quantize it again"
        ) from error
