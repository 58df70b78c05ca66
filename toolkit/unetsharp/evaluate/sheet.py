"""What the evaluation's pictures share: ink, letters, and a heading that says what they show."""

from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from unetsharp.evaluate.evaluation import Evaluation

__all__ = ["FAINT", "INK", "MARGIN", "PAPER", "Color", "font", "titled"]

Color = tuple[int, int, int]

INK: Color = (33, 37, 41)
FAINT: Color = (108, 114, 121)
PAPER: Color = (255, 255, 255)
MARGIN = 40

_HEADING = 56


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, ``size`` pixels high: the same picture on every machine. It has ASCII only."""
    return ImageFont.load_default(size)


def titled(evaluation: "Evaluation", panels: list[Image.Image]) -> Image.Image:
    """``panels``, of one height, side by side on white under a line that says which network and which patches."""
    width = sum(panel.width + MARGIN for panel in panels) + MARGIN
    sheet = Image.new("RGB", (width, _HEADING + panels[0].height + 2 * MARGIN), PAPER)
    folds = "+".join(map(str, evaluation.folds))
    heading = f"{evaluation.model.name} on {len(evaluation.patches):,} patches of fold {folds}"
    ImageDraw.Draw(sheet).text((MARGIN, MARGIN), heading, FAINT, font(24))
    left = MARGIN
    for panel in panels:
        sheet.paste(panel, (left, MARGIN + _HEADING))
        left += panel.width + MARGIN
    return sheet
