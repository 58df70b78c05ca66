"""The layers of a TensorRT engine, from what TensorRT's engine inspector said of it when it was built.

NVIDIA documents the inspector's call, not its answer. The answer is read as found in the examples of NVIDIA's TREx, the
engine explorer that came with TensorRT 8.2 to 11.0, in which a type is a sentence (``Channel major FP16 format where
channel % 8 == 0``), and in reports of TensorRT 10, in which compiled kernels (``kgen``) have it in a word (``Half``).
What is not found as expected is not told.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from unetsharp.inspection.layers import Layer, nodes_in
from unetsharp.inspection.rtx_program import fused_in
from unetsharp_engines.contract import INPUT_NAME
from unetsharp_engines.errors import InputError

__all__ = ["layers_in"]

_TYPES = (
    (r"bf16|bfloat16", "bf16", 16),
    (r"fp16|float16|half", "fp16", 16),
    (r"fp8|e4m3", "fp8", 8),
    (r"fp4|e2m1", "fp4", 4),
    (r"fp32|float", "fp32", 32),
    (r"int64", "int64", 64),
    (r"int32", "int32", 32),
    (r"uint8", "uint8", 8),
    (r"int8", "int8", 8),
    (r"int4", "int4", 4),
    (r"bool", "bool", 8),
)
"""What a type's name holds, in this order; our name for it; bits of one value."""

_KINDS = (
    (r"conv", "convolution"),
    (r"gemm|matrixmultiply|fullyconnected", "matrix product"),
    (r"pool", "pooling"),
    (r"reformat", "reformat"),
)
"""What the type of a layer holds, in small letters, and our name for it."""

_IDLE = ("NoOp", "Constant")
"""Types of layers that nothing is run for."""

_MOST_BYTES, _MOST_LAYERS = 1 << 24, 1 << 14
"""A network of ours has hundreds of layers; more than this is made to exhaust who reads it."""
_LONGEST_SIDE = 1 << 31
_MOST_SIDES = 8


def layers_in(content: bytes, source: str) -> tuple[Layer, ...]:
    """The layers told in ``content``, JSON, in the order they run.

    Bytes moved are those of the tensors as they are shaped, without what a layout pads. Raises InputError, which names
    ``source``, for other content.
    """
    try:
        if len(content) > _MOST_BYTES:
            raise ValueError(f"{len(content)} bytes")
        told = json.loads(content)["Layers"]
        if not isinstance(told, list) or len(told) > _MOST_LAYERS:
            raise ValueError(f"its layers are no list of up to {_MOST_LAYERS}")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"not what TensorRT says of an engine's layers ({_text(repr(error)):.80})"
        raise InputError(f"{source}: {reason}; build it again") from error
    batch = _batch(told)
    return tuple(_layer(entry, batch) for entry in told)


def _layer(entry: Any, batch: int) -> Layer:
    fields = entry if isinstance(entry, dict) else {"Name": entry}  # without details there are names alone
    inputs, outputs = _tensors(fields.get("Inputs")), _tensors(fields.get("Outputs"))
    is_idle = fields.get("LayerType") in _IDLE
    return Layer(
        name=_text(fields.get("Name")),
        kind=_kind(fields),
        nodes=nodes_in(_text(fields.get("Metadata"))),
        precision=_type_of(outputs[0])[0] if outputs else "",
        tactic=_text(fields.get("TacticName")),
        shape=_per_image(_shape(outputs[0]), batch) if outputs else (),
        read=0 if is_idle else sum(map(_bytes, inputs)) // batch,
        written=0 if is_idle else sum(map(_bytes, outputs)) // batch,
        weights=sum(map(_bytes, _tensors(fields.get("Constants")))) + _counted(fields, "Weights", "Bias"),
    )


def _kind(fields: Mapping[str, Any]) -> str:
    engine_s = _text(fields.get("LayerType")) or "layer"
    if engine_s == "kgen":
        return fused_in(re.sub(r"_0x\w+", "", _text(fields.get("Name")))) or engine_s
    pooling = {"MAX": "max-pool", "AVERAGE": "average pool"}.get(_text(fields.get("PoolingType")))
    known = (name for pattern, name in _KINDS if re.search(pattern, engine_s.lower()))
    return pooling or next(known, engine_s)


def _batch(told: list[Any]) -> int:
    """Images in the batch for which sizes are told."""
    tensors = (tensor for fields in told if isinstance(fields, dict) for tensor in _tensors(fields.get("Inputs")))
    shapes = (_shape(tensor) for tensor in tensors if tensor.get("Name") == INPUT_NAME)
    return next((shape[0] for shape in shapes if shape), 1)


def _tensors(value: Any) -> list[Mapping[str, Any]]:
    return [tensor for tensor in value if isinstance(tensor, dict)] if isinstance(value, list) else []


def _shape(tensor: Mapping[str, Any]) -> tuple[int, ...]:
    """With a batch of one where it is free; empty where it is not told."""
    sides = tensor.get("Dimensions")
    if not isinstance(sides, list) or not 0 < len(sides) <= _MOST_SIDES:
        return ()
    known = [1 if index == 0 and side == -1 else side for index, side in enumerate(sides)]
    return tuple(known) if all(type(side) is int and 0 < side < _LONGEST_SIDE for side in known) else ()


def _per_image(shape: tuple[int, ...], batch: int) -> tuple[int, ...]:
    return (1, *shape[1:]) if shape[:1] == (batch,) else shape


def _type_of(tensor: Mapping[str, Any]) -> tuple[str, int]:
    """Its name and bits; none where it is not told, as for sizes that depend on a batch that was not set."""
    return _type_named(_text(tensor.get("Format/Datatype") or tensor.get("Datatype")))


def _type_named(words: str) -> tuple[str, int]:
    return next(((name, bits) for pattern, name, bits in _TYPES if re.search(pattern, words.lower())), ("", 0))


def _bytes(tensor: Mapping[str, Any]) -> int:
    shape = _shape(tensor)
    return math.prod(shape) * _type_of(tensor)[1] // 8 if shape else 0


def _counted(fields: Mapping[str, Any], *names: str) -> int:
    """Bytes of constants of which type and count are told."""
    told = [value for name in names if isinstance(value := fields.get(name), dict) and type(value.get("Count")) is int]
    return sum(
        value["Count"] * _type_named(_text(value.get("Type")))[1] // 8
        for value in told
        if 0 < value["Count"] < _LONGEST_SIDE
    )


def _text(value: Any) -> str:
    """What a terminal prints as it is; empty for what is no text."""
    return "".join(c if c.isprintable() else " " for c in value) if isinstance(value, str) else ""
