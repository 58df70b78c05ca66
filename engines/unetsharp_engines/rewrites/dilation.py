"""R3: dilated convolutions whose outer taps only ever see padding."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from unetsharp_engines.rewrites.convolution import Convolution
from unetsharp_engines.rewrites.graph import Graph, Shape, name_of
from unetsharp_engines.rewrites.outcome import Outcome

__all__ = ["drop_taps_in_padding"]

_Sides = tuple[int, int]
"""Height and width."""


def drop_taps_in_padding(graph: Graph) -> Outcome:
    """Cut from each dilated convolution the rows and columns of taps that fall into its padding at every pixel.

    Output row y adds, for tap i, weight[i] times input row ``y·stride - pad + i·dilation``. If that row is outside the
    input for every y, the tap only ever multiplies the padding's zeros, so leaving it out changes nothing. For a 3×3
    of dilation d padded by d, the outer taps reach ±d: they are dead exactly when the map's side is at most d, so on
    maps of up to 12×12 (384 pixels at stride 32) those of d = 12 and d = 18 are 1×1. Rows and columns apart.
    """
    shapes = graph.shapes()
    image = _sides(shapes, graph.inputs[0])
    dilated = [conv for node in graph.nodes if (conv := Convolution.read(graph, node)) and conv.dilations != (1, 1)]
    if image is None:
        return Outcome(sites=(), note=f"height and width are not fixed: any tap of {len(dilated)} may count")
    inputs = [_sides(shapes, conv.node.input[0]) for conv in dilated]
    known = [(conv, sides) for conv, sides in zip(dilated, inputs, strict=True) if sides]
    changed = [(conv, _trimmed(conv, sides), sides) for conv, sides in known if _trimmed(conv, sides) is not conv]
    for _, trimmed, _ in changed:
        trimmed.write(graph)
    bounds = [_bounds(conv, trimmed, sides, image) for conv, trimmed, sides in changed]
    return Outcome(
        sites=tuple(name_of(conv.node) for conv, _, _ in changed),
        note="" if changed else "at this size every tap of every dilated convolution meets the picture",
        max_sides=(_least(height for height, _ in bounds), _least(width for _, width in bounds)),
    )


def _sides(shapes: dict[str, Shape], value: str) -> _Sides | None:
    """Height and width of a value [N, C, H, W]; None where they are not fixed."""
    shape = shapes.get(value, ())
    if len(shape) != 4 or shape[2] is None or shape[3] is None:
        return None
    return shape[2], shape[3]


def _trimmed(conv: Convolution, sides: _Sides) -> Convolution:
    """``conv`` without its dead rows and columns of taps; ``conv`` itself if it has none."""
    for axis in (0, 1):
        live = _live_taps(conv, axis, sides[axis])
        if 0 < len(live) < conv.kernel[axis]:
            conv = _kept(conv, axis, live[0], live[-1])
    return conv


def _kept(conv: Convolution, axis: int, first: int, last: int) -> Convolution:
    """``conv`` with only its taps ``first`` to ``last`` along ``axis``, padded so that each stays where it was."""
    pads, dilations = list(conv.pads), list(conv.dilations)
    pads[axis] -= first * dilations[axis]
    pads[2 + axis] -= (conv.kernel[axis] - 1 - last) * dilations[axis]
    if min(pads) < 0:
        return conv
    dilations[axis] = dilations[axis] if last > first else 1
    weight = np.take(conv.weight, range(first, last + 1), axis=2 + axis)
    top, left, bottom, right = pads
    return replace(conv, weight=weight, pads=(top, left, bottom, right), dilations=(dilations[0], dilations[1]))


def _live_taps(conv: Convolution, axis: int, side: int) -> list[int]:
    """Taps along ``axis`` that reach an input of this ``side`` from at least one output position."""
    taps, stride, dilation = conv.kernel[axis], conv.strides[axis], conv.dilations[axis]
    before, after = conv.pads[axis], conv.pads[2 + axis]
    outputs = (side + before + after - dilation * (taps - 1) - 1) // stride + 1
    return [i for i in range(taps) if any(0 <= y * stride - before + i * dilation < side for y in range(outputs))]


def _bounds(conv: Convolution, trimmed: Convolution, sides: _Sides, image: _Sides) -> tuple[int | None, int | None]:
    """The largest image height and width at which the same taps are dead; None for a side that was not trimmed."""
    height, width = (
        _largest(conv, axis, sides[axis], trimmed.kernel[axis]) * (image[axis] // sides[axis])
        if trimmed.kernel[axis] != conv.kernel[axis]
        else None
        for axis in (0, 1)
    )
    return height, width


def _largest(conv: Convolution, axis: int, side: int, taps: int) -> int:
    """The largest input side, from ``side`` on, of which only so many ``taps`` reach anything."""
    while len(_live_taps(conv, axis, side + 1)) == taps:
        side += 1
    return side


def _least(bounds: Iterable[int | None]) -> int | None:
    return min((bound for bound in bounds if bound is not None), default=None)
