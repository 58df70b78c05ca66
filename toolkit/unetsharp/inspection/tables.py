"""What `look_at` found, as tables for people."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from unetsharp.inspection.bundle_rows import bundle_rows
from unetsharp.inspection.layers import by_kind

__all__ = ["table_of"]

_Row = tuple[str, str]

_ONNX_RUNS_ON = {
    "": "not unetsharp's",
    "onnxruntime": "onnxruntime; for TensorRT build it: unetsharp build-engine",
    "tensorrt": "TensorRT alone, as an engine: unetsharp build-engine --runtime tensorrt",
}


def table_of(facts: Mapping[str, Any]) -> RenderableType:
    """Tables for the result of `unetsharp.inspection.look_at`."""
    rows = {"weights": _weights, "ONNX": _onnx, "bundle": _bundle, "engine": _engine}[facts["kind"]]
    main = _grid([(facts["kind"], facts["path"]), *rows(facts)])
    if facts.get("layers"):
        return Group(main, _layers(facts["layers"], facts["layers_of"]))
    return Group(main, _operations(facts["operations"])) if "operations" in facts else main


def _grid(rows: Iterable[_Row]) -> Table:
    table = _table()
    for name, value in rows:
        table.add_row(name, escape(value))
    return table


def _table(title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _weights(facts: Mapping[str, Any]) -> Iterator[_Row]:
    yield from _network(facts["network"])
    parts = ", ".join(f"{part} {count:,}" for part, count in facts["parameters_by_part"].items())
    yield "parameters", f"{facts['parameters']:,} ({parts})"
    yield "tensors", f"{facts['tensors']} ({_counts(facts['formats'])})"
    yield from _file(facts)
    yield "runs on", "torch; export it for other runtimes: unetsharp export"


def _onnx(facts: Mapping[str, Any]) -> Iterator[_Row]:
    yield from _network(facts["network"])
    yield "precision", f"{facts['precision']} (weights: {_counts(facts['formats'])})"
    yield "input", "; ".join(_tensor(t) for t in facts["inputs"])
    yield "output", "; ".join(_tensor(t) for t in facts["outputs"])
    yield "parameters", f"{facts['parameters']:,}"
    yield "cost", f"{facts['macs'] / 1e9:.2f} GMAC a tile (convolutions)" if facts["macs"] else "shapes are not known"
    yield "opset", ", ".join(f"{domain} {version}" for domain, version in facts["opset"].items())
    yield "made by", f"{facts['producer'] or 'unknown'}, IR {facts['ir_version']}"
    yield from _file(facts)
    yield "runs on", _ONNX_RUNS_ON["".join(facts["runs_on"])]
    for parser in facts["parsers"]:
        yield f"  {parser['parser']}", f"{_verdict(parser['problems'])} [{parser['known_by']}]"


def _verdict(problems: list[str] | None) -> str:
    if problems is None:
        return "unknown"
    return f"does not take it: {'; '.join(problems)}" if problems else "takes it"


def _bundle(facts: Mapping[str, Any]) -> Iterator[_Row]:
    yield from _network(facts["manifest"]["info"])
    yield from bundle_rows(facts)


def _engine(facts: Mapping[str, Any]) -> Iterator[_Row]:
    loaded = "its layers are from TensorRT, which loaded it" if facts["loaded"] else "it was not loaded"
    yield "made by", f"{facts['runtime']} {facts['version']} (from its header; {loaded})"
    yield from _file(facts)
    yield "runs on", "nothing by itself: use the bundle that it came from"


def _network(network: Mapping[str, Any] | None) -> Iterator[_Row]:
    if network is None:
        yield "network", "unknown: no unetsharp metadata"
        return
    yield "network", f"{network['name']}: U-Net# on {network['encoder']}, width {network['width']}"
    yield "trained", f"at {network['train_size']} px, {network['mpp']} µm/px, stain: {network['stain']}"
    yield "classes", ", ".join(network["classes"])
    if network["untaught"]:
        yield "never taught", ", ".join(str(name) for name in network["untaught"])
    if network["weights_sha256"]:
        yield "from weights", str(network["weights_sha256"])
    yield "written by", f"unetsharp {network['tool_version'] or 'unknown'}"


def _file(facts: Mapping[str, Any]) -> Iterator[_Row]:
    yield "size", f"{facts['size'] / 1e6:.2f} MB"
    yield "SHA-256", facts["sha256"]


def _tensor(tensor: Mapping[str, Any]) -> str:
    return f"{tensor['name']} {tensor['dtype']} [{', '.join(str(n) for n in tensor['shape'])}]"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} × {name}" for name, count in counts.items())


def _layers(layers: Sequence[Mapping[str, Any]], of: str) -> Table:
    """How many layers of each kind, and what they move per image."""
    kinds = by_kind(layers)
    title = f"\nlayers of {escape(of)}, and the activations that they read and write per image"
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("kind", overflow="fold")
    table.add_column("writes", no_wrap=True)
    for name in ("layers", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    most = max(total for _, total in kinds.values()) or 1
    for kind, (count, total) in kinds.items():
        bar = "▪" * round(24 * total / most)
        table.add_row(escape(kind), _precisions(layers, kind), str(count), f"{total / 1e6:.1f}", bar)
    table.add_row("all", "", str(len(layers)), f"{sum(total for _, total in kinds.values()) / 1e6:.1f}", "")
    return table


def _precisions(layers: Sequence[Mapping[str, Any]], kind: str) -> str:
    """The types that layers of ``kind`` write, the most common first."""
    counts = Counter(layer["precision"] for layer in layers if layer["kind"] == kind and layer["precision"])
    return ", ".join(name for name, _ in counts.most_common())


def _operations(operations: Mapping[str, int]) -> Table:
    table = _table("\noperations")
    for name, count in operations.items():
        table.add_row(name, str(count), "▪" * round(40 * count / max(operations.values())))
    return table
