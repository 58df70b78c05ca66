"""Confusion matrices as a picture, drawn with Pillow: the deploy install has no matplotlib."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from unetsharp.evaluate.sheet import FAINT, INK, PAPER, Color, font, titled
from unetsharp_engines.contract import CLASSES, NUCLEUS_CLASSES

if TYPE_CHECKING:
    from unetsharp.evaluate.evaluation import Evaluation

__all__ = ["confusion_picture"]

EMPTY: Color = (243, 244, 246)
LIGHTEST: Color = (246, 248, 251)
DARKEST: Color = (8, 64, 129)
"""A cell that holds all of its row."""

CELL = 112
LABELS = 250
"""Width of the row labels."""
HEADER = 190
"""Height of title and column labels."""
_WHITE_TEXT_FROM = 0.3
"""Share from which a cell is dark enough for white text."""


@dataclass(frozen=True, kw_only=True)
class _Matrix:
    """One matrix to draw."""

    title: str
    unit: str
    counts: npt.NDArray[np.int64]
    """[6, 6], rows true, columns predicted."""
    row_names: list[str]
    column_names: list[str]
    no_row: list[str]
    """What to say in the place of each row without counts."""


def confusion_picture(evaluation: "Evaluation") -> Image.Image:
    """Pixels and nuclei by true and predicted class, side by side, RGB; each row's shares sum to 100%."""
    overall = evaluation.overall
    pixel_names = [c.name for c in CLASSES]
    nucleus_names = [c.name for c in NUCLEUS_CLASSES]
    pixels = _Matrix(
        title="Pixels",
        unit="px",
        counts=overall.pixels.counts,
        row_names=pixel_names,
        column_names=pixel_names,
        no_row=["not in the truth"] * len(CLASSES),
    )
    nuclei = _Matrix(
        title="Nuclei",
        unit="nuclei",
        counts=overall.nuclei.counts,
        row_names=[*nucleus_names, "Invented"],
        column_names=[*nucleus_names, "Missed"],
        no_row=[*["not in the truth"] * len(NUCLEUS_CLASSES), "none"],
    )
    return titled(evaluation, [_panel(pixels), _panel(nuclei)])


def _panel(matrix: _Matrix) -> Image.Image:
    side = len(matrix.counts) * CELL
    panel = Image.new("RGB", (LABELS + side, HEADER + side), PAPER)
    draw = ImageDraw.Draw(panel)
    draw.text((LABELS, 0), matrix.title, INK, font(40))
    draw.text((LABELS, 52), "rows: truth, columns: predicted, % of the row", FAINT, font(22))
    for column, name in enumerate(matrix.column_names):
        x = LABELS + (column + 0.5) * CELL
        _swatch(draw, (x, HEADER - 56), column)
        draw.text((x, HEADER - 16), name, INK, font(19), anchor="ms")
    for row, name in enumerate(matrix.row_names):
        _draw_row(draw, matrix, row, name)
    return panel


def _draw_row(draw: ImageDraw.ImageDraw, matrix: _Matrix, row: int, name: str) -> None:
    counts = matrix.counts[row].tolist()
    top, middle = HEADER + row * CELL, HEADER + (row + 0.5) * CELL
    _swatch(draw, (LABELS - 28, middle), row)
    draw.text((LABELS - 52, middle - 3), name, INK, font(24), anchor="rs")
    draw.text((LABELS - 52, middle + 9), f"{sum(counts):,} {matrix.unit}", FAINT, font(19), anchor="rt")
    if not any(counts):
        _draw_box(draw, (LABELS, top), EMPTY, width=len(counts) * CELL)
        draw.text((LABELS + len(counts) * CELL / 2, middle), matrix.no_row[row], FAINT, font(22), anchor="mm")
        return
    for column, count in enumerate(counts):
        _draw_cell(draw, (LABELS + column * CELL, top), count / sum(counts), count)


def _draw_cell(draw: ImageDraw.ImageDraw, corner: tuple[int, int], share: float, count: int) -> None:
    _draw_box(draw, corner, _shade(share))
    ink = PAPER if share >= _WHITE_TEXT_FROM else INK
    x, y = corner[0] + CELL / 2, corner[1] + CELL / 2
    if count:
        draw.text((x, y - 2), _percent(share), ink, font(28), anchor="ms")
        draw.text((x, y + 12), _short(count), ink, font(18), anchor="mt")


def _draw_box(draw: ImageDraw.ImageDraw, corner: tuple[int, int], color: Color, width: int = CELL) -> None:
    x, y = corner
    draw.rounded_rectangle((x + 2, y + 2, x + width - 3, y + CELL - 3), radius=8, fill=color)


def _swatch(draw: ImageDraw.ImageDraw, center: tuple[float, float], channel: int) -> None:
    """A dot in the class's colour."""
    x, y = center
    draw.ellipse((x - 10, y - 10, x + 10, y + 10), fill=CLASSES[channel].color)


def _shade(share: float) -> Color:
    """`LIGHTEST` to `DARKEST`, steep at first: confusions of a few percent must be seen."""
    weight = share**0.6
    red, green, blue = (round(light + (dark - light) * weight) for light, dark in zip(LIGHTEST, DARKEST, strict=True))
    return red, green, blue


def _percent(share: float) -> str:
    if share < 0.001:
        return "<0.1%"
    return f"{share:.1%}" if share < 0.0995 else f"{share:.0%}"


def _short(count: int) -> str:
    """``count`` in at most five characters."""
    for size, suffix in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= 10 * size:
            return f"{count / size:.0f}{suffix}"
        if count >= size:
            return f"{count / size:.1f}{suffix}"
    return str(count)
