"""The ONNX that an engine is built from, read and checked before anything long begins."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unetsharp.build.bundle import open_bundle
from unetsharp.export.precision import precision_of
from unetsharp.model_files import ModelKind, kind_of
from unetsharp_engines.contract import CLASSES, INPUT_NAME, OUTPUT_NAME, TAPS_NAME
from unetsharp_engines.errors import InputError
from unetsharp_engines.model_info import METADATA_KEY, ModelInfo

if TYPE_CHECKING:
    import onnx

__all__ = ["Source", "parse_onnx", "read_file", "read_source"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """An ONNX that unetsharp exported."""

    path: Path
    content: bytes
    """The file's bytes."""
    model: "onnx.ModelProto"
    """The same, parsed."""
    info: ModelInfo
    precision: str
    """``fp32``, ``fp16`` or ``int8``: what its tensors are."""
    input_shape: tuple[int | None, ...]
    """[N, 3, H, W]; None where the dimension is free."""


def read_file(path: Path) -> bytes:
    """The bytes of ``path``. Raises InputError where it is missing or cannot be read."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; give an ONNX file that `unetsharp export` wrote")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def parse_onnx(content: bytes, path: Path) -> "onnx.ModelProto":
    """Parse the bytes of an ONNX file; ``path`` names it in the InputError that other bytes raise.

    Tensors kept in other files are not read: a network of ours has none.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types

    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(content)
    except DecodeError as error:
        raise InputError(f"{path}: not a whole ONNX file ({error}); export it again") from error
    if not all(isinstance(name, str) for node in model.graph.node for name in _names_in(node)):
        raise InputError(f"{path}: not a whole ONNX file (names that are no text); export it again")
    known = onnx.TensorProto.DataType.values()
    if strange := [tensor.data_type for tensor in model.graph.initializer if tensor.data_type not in known]:
        raise InputError(
            f"{path}: not a whole ONNX file (a tensor of type {strange[0]}, which ONNX lacks); export it again"
        )
    if not model.graph.node:
        raise InputError(f"{path}: an ONNX without a single node; give one that `unetsharp export` wrote")
    return model


def _names_in(node: "onnx.NodeProto") -> tuple[str, ...]:
    """Bytes that are no UTF-8 come as bytes."""
    return node.name, node.op_type, node.domain, *node.input, *node.output


def read_source(path: Path) -> Source:
    """Read ``path``, an ONNX or a bundle that holds one, and check that it is as the contract has it.

    Raises InputError.
    """
    kind = kind_of(path) if path.exists() else None  # what is missing, `read_file` tells
    if kind is ModelKind.WEIGHTS:
        raise InputError(f"{path}: weights, and an ONNX is wanted: unetsharp export {path} -o model.onnx")
    if kind is ModelKind.ENGINE:
        raise InputError(f"{path}: an engine, and an ONNX is wanted; give the bundle that it came from")
    content = open_bundle(path).read_onnx() if kind is ModelKind.BUNDLE else read_file(path)
    model = parse_onnx(content, path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if METADATA_KEY not in metadata:
        raise InputError(f"{path}: an ONNX without unetsharp's metadata; give one that `unetsharp export` wrote")
    return Source(
        path=path,
        content=content,
        model=model,
        info=ModelInfo.from_json(metadata[METADATA_KEY], source=str(path)),
        precision=precision_of(model),
        input_shape=_input_shape(model, path),
    )


def _input_shape(model: "onnx.ModelProto", path: Path) -> tuple[int | None, ...]:
    seen = {value.name: _shape(value) for value in (*model.graph.input, *model.graph.output)}
    output, channels = _output(model, str(path))
    wanted = {INPUT_NAME: 3, output: channels}
    if {name: shape[1:2] for name, shape in seen.items() if len(shape) == 4} != {n: (c,) for n, c in wanted.items()}:
        ours = f"{INPUT_NAME} [N, 3, H, W] → {output} [N, {channels}, H, W]"
        raise InputError(f"{path}: its tensors are {seen}; wanted {ours}")
    return seen[INPUT_NAME]


def _output(model: "onnx.ModelProto", source: str) -> tuple[str, int]:
    """Name and channels of the output: the logits, or a tail-less network's taps."""
    from unetsharp_engines.rewrites import TAIL_KEY, HeadTail

    tails = [entry.value for entry in model.metadata_props if entry.key == TAIL_KEY]
    return (TAPS_NAME, HeadTail.from_json(tails[0], source=source).channels) if tails else (OUTPUT_NAME, len(CLASSES))


def _shape(value: "onnx.ValueInfoProto") -> tuple[int | None, ...]:
    dimensions = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in dimensions)
