"""The kernels of a TensorRT-RTX engine, read from its file without a GPU and without running it.

TensorRT's own inspector needs the GPU to load an engine. But TensorRT-RTX 1.x writes the program it compiled into the
engine as text: tensors with their shapes and types, one instruction for each kernel, with what it reads and writes and
the ONNX nodes it stands for, and how free sides follow from the batch size. NVIDIA documents none of this; what is not
found as expected is not told.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from unetsharp.inspection.layers import Layer, nodes_in

__all__ = ["fused_in", "kernels_of"]

_PROGRAM = re.compile(rb"NLYM.{12}header \{\n", re.DOTALL)
_TENSOR = re.compile(r"^ {2}(?:sub_)?tensor=\{(.*)\}$", re.MULTILINE)
_INSTRUCTION = re.compile(r"^ {2}(\w+)=\{ (.*?)(?=^ {2}\w+=\{|\Z)", re.MULTILINE | re.DOTALL)
_QUOTED = re.compile(r'"([^"]*)"')
_SIDE = re.compile(r"^ {2}(\w+)=\{ [^\n]*? output=\{(.*?)\} +input=\{(.*?)\} +stream=", re.MULTILINE)
_CONSTANT = re.compile(r"__s\^(\d+)i64")
_DEEPEST = 20
_BYTES = {"half": 2, "bf16": 2, "float": 4, "int8": 1, "fp8": 1, "bool": 1, "int32": 4, "int64": 8}
_NAMES = {"half": "fp16", "float": "fp32"}
_HOST_ONLY = {"shape_call", "copy", "wait", "record"}
_PART = re.compile(r"ExpLog1IsinSeleTanhMul|MinExpAddMulAddDivMul|MulAdd|[A-Z][a-z0-9]*")
"""What a generated kernel's name is made of, after ``__myl_``: four letters for each operation fused in it."""
_WORDS = {
    "ExpLog1IsinSeleTanhMul": "Mish",
    "MinExpAddMulAddDivMul": "Mish",
    "MulAdd": "BatchNorm",
    "Resi": "resize",
    "Tran": "transpose",
    "Resh": "reshape",
    "Conc": "concat",
    "Repl": "repeat",
    "Slic": "slice",
    "Move": "copy",
}
_ROLES = {"corrltn": "convolution", "fully_connected": "matrix product", "maxpool": "max-pool"}


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    shape: tuple[int, ...]
    type: str
    is_constant: bool

    @property
    def bytes(self) -> int:
        return _BYTES.get(self.type, 0) * math.prod(self.shape)


def kernels_of(engine: bytes) -> tuple[Layer, ...]:
    """The kernels of a TensorRT-RTX engine's bytes, in their order; none where the file does not tell."""
    descriptors, _, rest = _program(engine).partition("\nmain {\n")
    body, _, shapes = rest.partition("\n}\n")
    try:
        tensors = dict(_tensors(descriptors, _Sides(shapes)))
    except _NotToldError:
        return ()
    found = (_kernel(kind, fields, tensors) for kind, fields in _INSTRUCTION.findall(body) if kind not in _HOST_ONLY)
    return tuple(kernel for kernel in found if kernel is not None)


def _program(engine: bytes) -> str:
    """The first program in the file, the one that launches everything; empty where there is none."""
    start = _PROGRAM.search(engine)
    if start is None:
        return ""
    main = engine.find(b"\nmain {\n", start.end())
    after = engine.find(b"\n}\n", main)
    end = engine.find(b"\n}\n", after + 3)  # of the program that computes shapes
    return engine[start.end() : end + 3].decode("utf-8", errors="replace") if 0 <= main < after < end else ""


class _NotToldError(Exception):
    """A free side is computed in a way that is not known here."""


class _Sides:
    """Sides of tensors that follow from the batch size, for a batch of one: the engine computes them as products."""

    def __init__(self, program: str) -> None:
        self._made_by = {
            made[0]: (kind, _QUOTED.findall(inputs))
            for kind, outputs, inputs in _SIDE.findall(program)
            if (made := _QUOTED.findall(outputs))
        }

    def of(self, name: str, depth: int = 0) -> int:
        """The side called ``name``: the batch itself, which nothing makes, is one. Raises _NotToldError."""
        if constant := _CONSTANT.fullmatch(name):
            return int(constant.group(1))
        if name not in self._made_by:
            return 1
        kind, inputs = self._made_by[name]
        if kind not in {"copy", "mul"} or depth > _DEEPEST:
            raise _NotToldError
        return math.prod(self.of(value, depth + 1) for value in inputs)


def _tensors(descriptors: str, sides: _Sides) -> Iterator[tuple[str, _Tensor]]:
    for fields in _TENSOR.findall(descriptors):
        name, dims, kind = (
            re.search(pattern, fields) for pattern in (r'name="([^"]*)"', r"dims=\{([^}]*)\}", r"type=(\w+)")
        )
        if name and dims and kind:
            shape = tuple(int(n) if n.isdigit() else sides.of(n.strip('"')) for n in dims.group(1).split())
            yield name.group(1), _Tensor(shape=shape, type=kind.group(1), is_constant="const_payload_size" in fields)


def _kernel(kind: str, fields: str, tensors: dict[str, _Tensor]) -> Layer | None:
    name = re.search(r'name="?([^" ]*)', fields)
    inputs, outputs = (_arguments(fields, what, tensors) for what in ("input", "output"))
    if name is None or not outputs:
        return None
    constants = [t for n, t in inputs.items() if t.is_constant or _is_constant(n)]
    written = next(iter(outputs.values()))
    return Layer(
        name=name.group(1),
        kind=_kind(kind, name.group(1), fields),
        nodes=nodes_in(fields),
        precision=_NAMES.get(written.type, written.type),
        shape=written.shape,
        read=sum(t.bytes for t in inputs.values()) - sum(t.bytes for t in constants),
        written=sum(t.bytes for t in outputs.values()),
        weights=sum(t.bytes for t in constants),
    )


def _arguments(fields: str, what: str, tensors: dict[str, _Tensor]) -> dict[str, _Tensor]:
    """The tensors that an instruction names as ``what``, once each; numbers that steer it are left out."""
    named = re.search(rf"\b{what}(?:_args)?=\{{([^}}]*)\}}", fields)
    names = _QUOTED.findall(named.group(1)) if named else []
    return {n: tensors[n] for n in names if n in tensors and len(tensors[n].shape) > 1}


def _is_constant(name: str) -> bool:
    return name.endswith(("dconst", "_const"))


def _kind(kind: str, name: str, fields: str) -> str:
    backbone = re.search(r"backbone=(\w+)", fields)
    if backbone:
        return {"conv": "convolution", "gemm": "matrix product"}.get(backbone.group(1), backbone.group(1))
    return _ROLES.get(kind) or fused_in(name) or kind


def fused_in(name: str) -> str:
    """The operations that a generated kernel's ``name`` tells (``__myl_AddRelu``): ``add + relu``; empty for others."""
    return " + ".join(_WORDS.get(part, part.lower()) for part in _PART.findall(name))
