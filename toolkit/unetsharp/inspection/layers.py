"""An engine's layers as people want them: what each moves, summed up by kind, and drawn."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

__all__ = ["Layer", "by_kind", "moved", "nodes_in", "picture"]

_COLOURS = {"convolution": "#4477aa", "matrix product": "#66ccee", "max-pool": "#ccbb44"}
_OTHER = "#ee6677"
_ROW, _LABEL, _BAR, _HEAD = 14, 430, 420, 58
"""Height of a layer's row, widths of its text and of the longest bar, height of the title; pixels."""
_LETTERS = 64
"""That fit into the text's width, beside how many more nodes there are and the precision."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One step of an engine, mostly one kernel; bytes are per image, for tensors whose batch is free."""

    name: str
    kind: str
    """``convolution``, ``matrix product``, ``max-pool``, what was fused (``Mish + BatchNorm``), or the engine's word.
    """
    nodes: tuple[str, ...]
    """The ONNX nodes it computes, as far as the engine says."""
    precision: str
    """Type of what it writes: ``fp16``, ``fp32``, ``int8`` …; empty where the engine does not tell."""
    tactic: str = ""
    """Name of the kernel that was chosen, where the engine tells it."""
    shape: tuple[int, ...]
    """Of the first tensor it writes, batch 1."""
    read: int
    """Bytes of activations it reads."""
    written: int
    """Bytes it writes."""
    weights: int
    """Bytes of constants it reads, once a batch."""


def nodes_in(text: str) -> tuple[str, ...]:
    """The ONNX nodes that an engine's ``text`` names, as ``[ONNX Layer: stem]``; no text makes it slow."""
    return tuple(part.partition("]")[0] for part in text.split("[ONNX Layer: ")[1:] if "]" in part)


def moved(layer: Mapping[str, Any]) -> int:
    """Bytes of activations that a layer reads and writes per image."""
    return int(layer["read"]) + int(layer["written"])


def by_kind(layers: Iterable[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """Number of layers and bytes moved per image by kind, the most bytes first."""
    sums: dict[str, tuple[int, int]] = {}
    for layer in layers:
        count, total = sums.get(layer["kind"], (0, 0))
        sums[layer["kind"]] = count + 1, total + moved(layer)
    return dict(sorted(sums.items(), key=lambda item: -item[1][1]))


def picture(layers: Sequence[Mapping[str, Any]], title: str) -> str:
    """An SVG: a bar for each layer, in the order they run, as long as the bytes it moves per image."""
    longest = max(map(moved, layers), default=0) or 1
    rows = "\n".join(_row(index, layer, longest) for index, layer in enumerate(layers))
    width, height = _LABEL + _BAR + 90, _HEAD + _ROW * len(layers) + 10
    total = sum(map(moved, layers)) / 1e6
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="10">\n<rect width="100%" height="100%" fill="white"/>\n'
        f'<text x="10" y="22" font-size="15">{escape(title)}</text>\n'
        f'<text x="10" y="40">{len(layers)} layers move {total:.1f} MB of activations per image; {_legend()}</text>\n'
        f"{rows}\n</svg>\n"
    )


def _legend() -> str:
    return "".join(
        f'<tspan fill="{colour}">■</tspan> {kind} ' for kind, colour in (*_COLOURS.items(), ("other", _OTHER))
    )


def _row(index: int, layer: Mapping[str, Any], longest: int) -> str:
    y = _HEAD + _ROW * index
    bytes_moved, label = moved(layer), _label(layer)
    return (
        f"<g><title>{escape(_told(layer))}</title>"
        f'<text x="{_LABEL - 6}" y="{y + 10}" text-anchor="end">{escape(label)}</text>'
        f'<rect x="{_LABEL}" y="{y + 1}" width="{_BAR * bytes_moved / longest:.1f}" height="{_ROW - 3}" '
        f'fill="{_COLOURS.get(layer["kind"], _OTHER)}"/>'
        f'<text x="{_LABEL + _BAR * bytes_moved / longest + 4:.1f}" y="{y + 10}">{bytes_moved / 1e6:.2f} MB</text></g>'
    )


def _told(layer: Mapping[str, Any]) -> str:
    """What a browser shows where the pointer rests: all of the layer."""
    shape = "×".join(map(str, layer["shape"]))
    lines = (layer["name"], f"{layer['kind']} → {shape} {layer['precision']}", layer["tactic"], *layer["nodes"])
    return "\n".join(filter(None, lines))


def _label(layer: Mapping[str, Any]) -> str:
    """What the layer computes: its ONNX nodes, the first of them where there are many, and its precision."""
    nodes = layer["nodes"] or (layer["name"],)
    more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
    return ", ".join(filter(None, (f"{_cut(nodes[0])}{more}", layer["precision"])))


def _cut(name: str) -> str:
    """The end of a name that is too long for its column."""
    return name if len(name) <= _LETTERS else f"…{name[-_LETTERS:]}"
