"""A slide in fields: parts that are segmented one by one, so that memory grows with a field, not with the slide.

Fields are about a millimetre wide. Each is seen with a margin: as much as its tiles reach, which lie where they would
lie in the whole slide, and `CONTEXT` beyond that is as good as the field itself. A nucleus belongs to the field that
holds its centre; the neighbour sees it too, on equal pixels, and leaves it alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product

from unetsharp.infer.box import Box
from unetsharp.infer.tiling import Axis, Grid

__all__ = ["CONTEXT", "FIELD", "Field", "fields_of"]

FIELD: int = 4096
"""Largest side of a field, in network pixels: 1.02 mm. With such fields `benchmarks/slides.py` saw runs of 0.9 GB."""

CONTEXT: int = 64
"""Network pixels around a field where the network's answers are those of the whole slide: 16 µm, so that a nucleus
centred within the field lies in them as a whole, up to 32 µm across."""


@dataclass(frozen=True)
class Field:
    """One part of a slide, in network pixels."""

    core: Box
    """What is reported from this field: the cores are the slide, each pixel once."""
    seen: Box
    """What is segmented: the core and its margin."""
    grid: Grid
    """The tiles over ``seen``."""


def fields_of(grid: Grid) -> Iterator[Field]:
    """The fields of a slide, row by row; ``grid`` is the tiles over all of it."""
    for rows, columns in product(_spans(grid.rows), _spans(grid.columns)):
        yield Field(
            Box(rows.core[0], columns.core[0], rows.core[1], columns.core[1]),
            Box(rows.seen[0], columns.seen[0], rows.seen[1], columns.seen[1]),
            Grid(grid.rows.part(*rows.seen), grid.columns.part(*columns.seen)),
        )


@dataclass(frozen=True)
class _Span:
    core: tuple[int, int]
    seen: tuple[int, int]


def _spans(axis: Axis) -> list[_Span]:
    borders = _borders(axis)
    return [_Span((begin, end), _seen(axis, begin, end)) for begin, end in pairwise(borders)]


def _borders(axis: Axis) -> list[int]:
    """Where cores begin and end along a side: equal parts, but for whole steps of the tiles.

    `CONTEXT` before and behind each border a tile begins, so that no tile is run for a few pixels alone.
    """
    parts = -(-axis.length // FIELD)
    steps = {round(i * axis.length / parts / axis.step) for i in range(1, parts)}
    inner = sorted(axis.starts[0] + CONTEXT + step * axis.step for step in steps)
    return [0, *(border for border in inner if 0 < border < axis.length), axis.length]


def _seen(axis: Axis, begin: int, end: int) -> tuple[int, int]:
    """From the first to the last pixel of the tiles that show ``begin`` to ``end`` and `CONTEXT` around."""
    first = next(start for start in axis.starts if start > begin - CONTEXT - axis.tile)
    last = max(start for start in axis.starts if start < end + CONTEXT)
    return max(0, first), min(axis.length, last + axis.tile)
