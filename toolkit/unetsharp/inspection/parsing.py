"""Which TensorRT takes an ONNX, told without a GPU: by its own parser where that can run, else by its documentation.

TensorRT-RTX's parser runs on every machine. TensorRT's own wants a GPU, so for it there is the table in
``operators.json``: opsets, operators and types as onnx-tensorrt's ``docs/operators.md`` lists them for that release
(TensorRT 11: NVIDIA's ONNX Opset Guide, with the operators of 10.15). What a document promises was not run.
"""

import functools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from unetsharp.build.builder import parser_error, recording_log, started
from unetsharp.build.flavours import RTX, Loaded, load
from unetsharp_engines.errors import MissingCapabilityError
from unetsharp_engines.rewrites.plugin_node import is_plugin

if TYPE_CHECKING:
    import onnx

__all__ = ["documented", "parse_problems", "parsers_of"]

_NAMES = {
    "FLOAT": "FP32", "FLOAT16": "FP16", "BFLOAT16": "BF16", "FLOAT8E4M3FN": "FP8", "FLOAT4E2M1": "FP4",
}  # fmt: skip
"""Types as onnx-tensorrt calls them, where ONNX's names differ."""

_STANDS_FOR = {"INT64": "INT32", "DOUBLE": "FP32"}
"""Types that the parser casts to another where an operator lacks them."""

_TAKING_PLUGINS = ("TensorRT 10.15", "TensorRT 11")
"""Releases that `unetsharp.build.plugin` can give our node to."""
_RESIZE_MODES = ("nearest", "linear")
_MOST = 5
"""Errors of a parser that are told."""


def parsers_of(model: "onnx.ModelProto", content: bytes, types: Mapping[str, int]) -> list[dict[str, Any]]:
    """One entry for each TensorRT known: ``parser``, ``problems``, ``known_by`` and ``source``.

    A parser without ``problems`` takes the network, which says nothing of speed; they are None where nothing is known.
    ``content`` are the bytes of ``model``, ``types`` the ONNX element type of every tensor whose type is known.
    """
    tables = [
        {
            "parser": release,
            "problems": documented(model, release, types),
            "known_by": "its documentation; not run",
            "source": _tables()[release]["source"],
        }
        for release in _tables()
    ]
    return [*tables, _run_rtx(content)]


def documented(model: "onnx.ModelProto", release: str, types: Mapping[str, int]) -> list[str]:
    """Why the parser of ``release`` would not take ``model``, by its documentation; nothing where it would."""
    table = _tables()[release]
    least, most = table["opsets"]
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    problems = [] if least <= opset <= most else [f"opset {opset}, and it takes {least} to {most}"]
    theirs = (node for node in model.graph.node if not (is_plugin(node) and release in _TAKING_PLUGINS))
    return [*problems, *_counted(_objections(model, theirs, _operators(release), types))]


def _objections(
    model: "onnx.ModelProto",
    nodes: Iterable["onnx.NodeProto"],
    operators: Mapping[str, frozenset[str]],
    types: Mapping[str, int],
) -> Iterator[str]:
    """One line for each of ``nodes`` of ``model`` that is not taken; equal lines for equal reasons."""
    nonzero = {tensor.name for tensor in model.graph.initializer if _is_nonzero(tensor)}
    for node in nodes:
        if node.domain not in ("", "ai.onnx"):
            yield f"{node.op_type} of {node.domain} needs a plugin"
        elif node.op_type not in operators:
            yield f"{node.op_type} is none of its operators"
        else:
            yield from _restrictions(node, nonzero)
            yield from _wrong_types(node, operators[node.op_type], types)


def _wrong_types(node: "onnx.NodeProto", taken: frozenset[str], types: Mapping[str, int]) -> Iterator[str]:
    """By the node's first input, the one that the documentation speaks of."""
    import onnx

    kind = types.get(node.input[0], 0) if node.input else 0
    name = onnx.TensorProto.DataType.Name(kind)
    name = _NAMES.get(name, name)
    if kind and taken and not {name, _STANDS_FOR.get(name, name)} & taken:
        yield f"{node.op_type} of {name}, and it takes {', '.join(sorted(taken))}"


def _restrictions(node: "onnx.NodeProto", nonzero: set[str]) -> Iterator[str]:
    """What the documentation says of single operators, as far as networks like U-Net# come near it."""
    modes = [attribute.s.decode(errors="replace") for attribute in node.attribute if attribute.name == "mode"]
    if node.op_type == "Resize" and modes and modes[0] not in _RESIZE_MODES:
        yield f"Resize of mode {modes[0]}, and it takes {' and '.join(_RESIZE_MODES)}"
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") and nonzero & set(node.input[2:]):
        yield f"{node.op_type} with a zero point other than 0"


def _counted(lines: Iterator[str]) -> list[str]:
    return [line if count == 1 else f"{line} ({count} nodes)" for line, count in Counter(lines).items()]


def _is_nonzero(tensor: "onnx.TensorProto") -> bool:
    """Whether a small whole-number tensor, as zero points are, holds anything but zeros."""
    import onnx

    if tensor.data_type not in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT32):
        return False
    return len(tensor.dims) <= 1 and (any(tensor.raw_data) or any(tensor.int32_data))


def _run_rtx(content: bytes) -> dict[str, Any]:
    try:
        loaded = load(RTX)
    except MissingCapabilityError:
        known_by = f"nothing: its parser is not here ({RTX.install} brings it)"
        return {"parser": RTX.name, "problems": None, "known_by": known_by, "source": ""}
    problems = parse_problems(loaded, content)
    return {"parser": loaded.label, "problems": problems, "known_by": "its own parser, run here", "source": ""}


def parse_problems(loaded: Loaded, content: bytes) -> list[str]:
    """The errors of the parser of ``loaded`` with their nodes' names; nothing where it takes ``content``."""
    import onnx

    log = recording_log(loaded.trt, lambda _: None)  # what it says, the parser's errors say too
    network = started(loaded, loaded.trt.Builder, log).create_network(loaded.network_flags())
    parser = loaded.trt.OnnxParser(network, log)
    if parser.parse(content):
        return []
    nodes = onnx.ModelProto.FromString(content).graph.node
    errors = [parser.get_error(index) for index in range(min(parser.num_errors, _MOST))]
    more = [f"and {parser.num_errors - _MOST} more"] if parser.num_errors > _MOST else []
    return [*(parser_error(error, nodes) for error in errors), *more]


@functools.cache
def _tables() -> dict[str, Any]:
    tables: dict[str, Any] = json.loads((files("unetsharp.inspection") / "operators.json").read_text("utf-8"))
    return tables


@functools.cache
def _operators(release: str) -> dict[str, frozenset[str]]:
    """Types by operator."""
    table = _tables()[_tables()[release].get("operators_of", release)]
    return {
        operator: frozenset(types.split())
        for types, operators in table["operators"].items()
        for operator in operators.split()
    }
