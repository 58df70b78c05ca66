"""The overlay: the picture, every nucleus outlined in its class's colour, and a legend that says what was counted."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from unetsharp_engines.contract import NUCLEUS_CLASSES, TissueClass
from unetsharp_engines.files import replacing

if TYPE_CHECKING:
    from unetsharp.infer.segmentation import Found

__all__ = ["draw", "write"]

Points = npt.NDArray[np.float64]
"""A polygon's, [V, 2], (x, y)."""
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SMALLEST_SIDE, LARGEST_SIDE = 1400, 4000
"""The longer side of the drawn picture, in pixels: smaller pictures are enlarged by a whole factor, up to
`LARGEST_ZOOM`, so that outlines do not hide the nuclei; larger ones are shrunk (the GeoJSON in QuPath is for those)."""
LARGEST_ZOOM = 8

OUTLINE_UM = 0.5
"""Width of outlines in µm, where that lies within `OUTLINE_PX`: so they do not hide the nuclei of coarse overlays."""
OUTLINE_PX = (1.5, 2.5)
"""Least and largest width of outlines, in pixels of the overlay."""
SMALLEST_OUTLINED = 0.6
"""Pixels of the overlay in a µm: below this, where a nucleus is some 5 pixels wide, it is filled, not outlined."""
HALO, HALO_OPACITY = 0.5, 0.6
"""Outlines lie on a white line, wider by this share of theirs on either side: blue on purple would not be seen."""
SUPERSAMPLING = 2
"""Outlines are drawn this much larger and averaged: Pillow's lines have stairs."""

INK, FAINT, PAPER = (32, 32, 36), (138, 138, 146), (255, 255, 255)
TEXT = 22
"""Height of the legend's letters, pixels; everything else in the legend is measured in it."""

BAR_LENGTHS_UM = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


def write(found: "Found", path: Path) -> None:
    """Write the overlay as PNG."""
    image = draw(found)
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")


def draw(found: "Found") -> Image.Image:
    """The overlay, an RGB image: the picture, larger or smaller if need be, above a legend."""
    zoom = _zoom(found.size)
    picture = _outlined(found, zoom)
    legend = _legend(found, zoom, picture.width)
    overlay = Image.new("RGB", (max(picture.width, legend.width), picture.height + legend.height), PAPER)
    overlay.paste(picture, (0, 0))
    overlay.paste(legend, (0, picture.height))
    return overlay


def _zoom(size: tuple[int, ...]) -> float:
    longest = max(size)
    if longest > LARGEST_SIDE:
        return LARGEST_SIDE / longest
    return float(min(LARGEST_ZOOM, math.ceil(SMALLEST_SIDE / longest)))


def _outlined(found: "Found", zoom: float) -> Image.Image:
    height, width = (max(1, round(side * zoom)) for side in found.size)
    image = Image.fromarray(found.picture).resize((width, height), Image.Resampling.BICUBIC)
    drawn = _filled if zoom / found.mpp < SMALLEST_OUTLINED else _outlines
    for tissue_class in NUCLEUS_CLASSES:
        if found.counts.get(tissue_class.name):
            polygons = (n.polygon * zoom for n in found.nuclei if n.tissue_class == tissue_class)
            drawn(image, polygons, tissue_class.color, OUTLINE_UM * zoom / found.mpp)
    return image


def _outlines(image: Image.Image, polygons: Iterable[Points], color: tuple[int, int, int], thickness: float) -> None:
    thinnest, thickest = OUTLINE_PX
    thickness = min(thickest, max(thinnest, thickness))
    polygons = list(polygons)
    halo = _lines(polygons, image.size, thickness * (1 + 2 * HALO))
    image.paste(PAPER, mask=halo.point([round(coverage * HALO_OPACITY) for coverage in range(256)]))
    image.paste(color, mask=_lines(polygons, image.size, thickness))


def _filled(image: Image.Image, polygons: Iterable[Points], color: tuple[int, int, int], _thickness: float) -> None:
    large = Image.new("L", (image.width * SUPERSAMPLING, image.height * SUPERSAMPLING))
    pen = ImageDraw.Draw(large)
    for polygon in polygons:
        pen.polygon([tuple(point) for point in (polygon * SUPERSAMPLING - 0.5).tolist()], fill=255)
    image.paste(color, mask=large.reduce(SUPERSAMPLING))


def _lines(polygons: Iterable[Points], size: tuple[int, int], thickness: float) -> Image.Image:
    """Coverage of the polygons' outlines, ``thickness`` pixels wide: an "L" image of ``size``."""
    large = Image.new("L", (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING))
    pen = ImageDraw.Draw(large)
    for polygon in polygons:
        points = [tuple(point) for point in (polygon * SUPERSAMPLING - 0.5).tolist()]
        pen.line(points + points[1:2], fill=255, width=round(thickness * SUPERSAMPLING), joint="curve")
    return large.reduce(SUPERSAMPLING)


def _legend(found: "Found", zoom: float, width: int) -> Image.Image:
    """A strip at least ``width`` wide: one entry a class, wrapped into rows, and the scale bar."""
    font = ImageFont.load_default(TEXT)
    entries = [(c, _entry(found, c)) for c in NUCLEUS_CLASSES]
    column = max(round(font.getlength(text)) for _, text in entries) + 5 * TEXT // 2
    width = max(width, column + TEXT)
    per_row = max(1, (width - TEXT) // column)
    bar_um, bar_px = _bar(found.mpp / zoom, width)
    rows = -(-len(entries) // per_row)
    legend = Image.new("RGB", (width, (2 * rows + 4) * TEXT), PAPER)
    pen = ImageDraw.Draw(legend)
    for index, (tissue_class, text) in enumerate(entries):
        row, place = divmod(index, per_row)
        taught = tissue_class.name in found.counts
        _draw_entry(pen, (TEXT + place * column, (2 * row + 1) * TEXT), tissue_class, text, font, taught)
    _draw_bar(pen, ((2 * rows + 1) * TEXT), bar_px, f"{bar_um} microns", font)
    return legend


def _entry(found: "Found", tissue_class: TissueClass) -> str:
    count = found.counts.get(tissue_class.name)
    return f"{tissue_class.name}: not taught" if count is None else f"{tissue_class.name}: {count:,}"


def _draw_entry(
    pen: ImageDraw.ImageDraw, at: tuple[int, int], tissue_class: TissueClass, text: str, font: Font, taught: bool
) -> None:
    x, y = at
    box = (x, y, x + TEXT, y + TEXT)
    if taught:
        pen.rectangle(box, outline=tissue_class.color, width=TEXT // 5)
    else:
        pen.line((x, y + TEXT // 2, x + TEXT, y + TEXT // 2), fill=FAINT, width=2)
    pen.text((x + 1.5 * TEXT, y + TEXT / 2), text, fill=INK if taught else FAINT, font=font, anchor="lm")


def _bar(um_per_pixel: float, width: int) -> tuple[int, int]:
    """Length of the scale bar in µm and pixels: the longest round one up to a quarter of ``width``."""
    fitting = [um for um in BAR_LENGTHS_UM if um / um_per_pixel <= width / 4]
    length = fitting[-1] if fitting else BAR_LENGTHS_UM[0]
    return length, round(length / um_per_pixel)


def _draw_bar(pen: ImageDraw.ImageDraw, y: int, length: int, text: str, font: Font) -> None:
    pen.rectangle((TEXT, y + TEXT // 3, TEXT + length, y + 2 * TEXT // 3), fill=INK)
    pen.text((2 * TEXT + length, y + TEXT / 2), text, fill=INK, font=font, anchor="lm")
