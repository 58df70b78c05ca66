"""The page's plots as SVG: no library, no script, sharp on paper."""

import math
from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt

from unetsharp.validate.bootstrap import Estimate
from unetsharp.validate.layers import LayerNoise
from unetsharp.validate.markup import number

__all__ = ["dice_chart", "layers_chart", "reliability_chart"]

INK, FAINT, LINE = "#1f2328", "#6b7280", "#e3e6ea"
DEPLOYED, REFERENCE, LIMIT, ALLOWED = "#1f6f94", "#9aa1ab", "#b3372f", "#eef6f0"

Floats = npt.NDArray[np.float64]


def dice_chart(rows: Sequence[tuple[str, Estimate]], limit: float) -> str:
    """Share of the reference's Dice that is lost or won, in percent, with intervals and the gates' ``limit`` (0.995).

    ``rows`` are names and `Change.kept`, at least one.
    """
    left, right, step, top = 170, 800, 32, 34
    height = top + step * len(rows) + 8
    reach = _reach([estimate for _, estimate in rows], 1.0 - limit)

    def x(kept: float) -> float:
        return left + (right - left) * (0.5 + max(-0.5, min(0.5, (kept - 1.0) / (2 * reach))))

    parts = [
        f'<rect x="{x(limit):.1f}" y="{top - 6}" width="{right - x(limit):.1f}" height="{height - top}" '
        f'fill="{ALLOWED}"/>',
        _line(x(1.0), top - 6, x(1.0), height - 2, FAINT),
        _line(x(limit), top - 6, x(limit), height - 2, LIMIT, dash="4 3"),
        _text(x(1.0) + 4, top - 14, "no change", FAINT),
        _text(x(limit) - 4, top - 14, f"limit {number((limit - 1) * 100, '+.2g')}%", LIMIT, "end"),
    ]
    for place, (name, kept) in enumerate(rows):
        y = top + step * place + step / 2 - 6
        parts.append(_text(0, y + 5, name, INK))
        if kept.low is not None and kept.high is not None:
            parts.append(_line(x(kept.low), y, x(kept.high), y, DEPLOYED, width=2))
        parts.append(f'<circle cx="{x(kept.value):.1f}" cy="{y:.1f}" r="5" fill="{DEPLOYED}"/>')
        parts.append(_text(right + 16, y + 5, _percent(kept), INK))
    return _svg(1088, height, "Change of Dice against the reference, in percent of it", parts)


def _reach(estimates: Sequence[Estimate], drop: float) -> float:
    """Half the width of the axis: all intervals, but wide ones are cut where they would crowd the rest."""
    values = [abs(e.value - 1.0) for e in estimates]
    ends = [abs(end - 1.0) for e in estimates for end in (e.low, e.high) if end is not None]
    return max(2 * drop, min(1.1 * max([*values, *ends]), max(10 * drop, 1.2 * max(values))), 1e-6)


def _percent(kept: Estimate) -> str:
    value = f"{number((kept.value - 1) * 100, '+.2f')}%"
    if kept.low is None or kept.high is None:
        return value
    return f"{value}  ({number((kept.low - 1) * 100, '+.2f')} … {number((kept.high - 1) * 100, '+.2f')})"


def reliability_chart(series: Sequence[tuple[str, Floats]]) -> str:
    """Share of right pixels by confidence: ``series`` are a name and bins [BINS, 3] (`tally.Said.confidence`).

    The reference first; the diagonal is a network that is as sure as it is right.
    """
    side, left, top = 300, 52, 12

    def xy(confidence: float, right: float) -> tuple[float, float]:
        return left + side * confidence, top + side * (1 - right)

    parts = [f'<rect x="{left}" y="{top}" width="{side}" height="{side}" fill="none" stroke="{LINE}"/>']
    parts.append(_line(*xy(0, 0), *xy(1, 1), LINE))
    for tick in (0.0, 0.5, 1.0):
        parts.append(_text(left + side * tick, top + side + 18, f"{tick:.1f}", FAINT, "middle"))
        parts.append(_text(left - 8, top + side * (1 - tick) + 4, f"{tick:.1f}", FAINT, "end"))
    parts.append(_text(left + side / 2, top + side + 36, "confidence", FAINT, "middle"))
    parts.append(_text(left - 8, top + side / 4, "right", FAINT, "end"))
    for place, (name, bins) in enumerate(series):
        color = REFERENCE if place == 0 else DEPLOYED
        filled = bins[bins[:, 0] > 0]
        points = [xy(confidence / pixels, right / pixels) for pixels, confidence, right in filled]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        width = 5 if place == 0 else 2
        parts.append(f'<polyline points="{joined}" fill="none" stroke="{color}" stroke-width="{width}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>' for x, y in points if place]
        parts.append(_line(left + 16, top + 20 + 20 * place, left + 44, top + 20 + 20 * place, color, width=width))
        parts.append(_text(left + 52, top + 24 + 20 * place, name, INK))
    return _svg(left + side + 12, top + side + 44, "Share of right pixels by confidence", parts)


def layers_chart(layers: Sequence[LayerNoise]) -> str:
    """Signal to noise of each convolution's output, decibel, part of the network by part; without silent layers."""
    ordered = _by_part([layer for layer in layers if not math.isnan(layer.sqnr_db)])
    left, top, height, width = 44, 26, 230, 1088
    finite = [layer.sqnr_db for layer in ordered if math.isfinite(layer.sqnr_db)]
    ceiling = 10 * math.ceil(max([40.0, *finite]) / 10)

    def xy(place: float, decibels: float) -> tuple[float, float]:
        clipped = max(0.0, min(ceiling, decibels))
        return left + (width - left - 8) * (place + 0.5) / max(len(ordered), 1), top + height * (1 - clipped / ceiling)

    parts = []
    for decibels in range(0, int(ceiling) + 1, 10):
        y = xy(0, decibels)[1]
        parts.append(_line(left, y, width, y, LINE))
        parts.append(_text(left - 8, y + 4, str(decibels), FAINT, "end"))
    parts.append(_text(0, 10, "dB", FAINT))
    for place, name in _part_starts(ordered):
        x = xy(place - 0.5, 0)[0]
        parts.append(_line(x, top - 12, x, top + height, LINE))
        fits = x < width - 60
        parts.append(_text(x + 4 if fits else width, top - 6, name, FAINT, "start" if fits else "end"))
    parts += [_dot(*xy(place, layer.sqnr_db), layer) for place, layer in enumerate(ordered)]
    parts += _legend(ordered, left, top + height + 24)
    return _svg(width, top + height + 36, "Signal to noise of every layer's output, dB", parts)


def _dot(x: float, y: float, layer: LayerNoise) -> str:
    color = DEPLOYED if layer.precision != "float" else REFERENCE
    title = f"{layer.name} ({layer.precision}): {number(layer.sqnr_db, '.1f')} dB"
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"><title>{escape(title)}</title></circle>'


def _legend(layers: Sequence[LayerNoise], x: float, y: float) -> list[str]:
    parts = []
    for precision in sorted({layer.precision for layer in layers}, reverse=True):
        color = REFERENCE if precision == "float" else DEPLOYED
        name = "computed in float, with the noise of those before" if precision == "float" else precision.upper()
        parts.append(f'<circle cx="{x + 4:.1f}" cy="{y - 4:.1f}" r="4" fill="{color}"/>')
        parts.append(_text(x + 14, y, name, INK))
        x += 40 + 7.2 * len(name)
    return parts


def _by_part(layers: Sequence[LayerNoise]) -> list[LayerNoise]:
    """``layers`` with those of one part together, parts by their mean place: a file's order mixes them."""
    places: dict[str, list[int]] = {}
    for place, layer in enumerate(layers):
        places.setdefault(_part(layer), []).append(place)
    return sorted(layers, key=lambda layer: sum(places[_part(layer)]) / len(places[_part(layer)]))


def _part_starts(layers: Sequence[LayerNoise]) -> list[tuple[int, str]]:
    parts = [_part(layer) for layer in layers]
    return [(place, name) for place, name in enumerate(parts) if place == 0 or parts[place - 1] != name]


def _part(layer: LayerNoise) -> str:
    return layer.name.strip("/").split("/")[0]


def _svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    inside = "\n".join(parts)
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" style="max-width: {width:g}px" role="img" '
        f'aria-label="{escape(label, quote=True)}">\n{inside}\n</svg>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, color: str, *, width: float = 1, dash: str = "") -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{color}" stroke-width="{width}"{dashed}/>'


def _text(x: float, y: float, text: str, color: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" text-anchor="{anchor}">{escape(text)}</text>'
