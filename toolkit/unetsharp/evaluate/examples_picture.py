"""Patches from the worst to the best: image, truth and prediction side by side, as in the paper's Figure 5."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from skimage.segmentation import find_boundaries

from unetsharp.evaluate.evaluation import Evaluation
from unetsharp.evaluate.run import Prediction, predict
from unetsharp.evaluate.sheet import FAINT, INK, PAPER, font, titled
from unetsharp_engines.contract import BACKGROUND, CLASSES, NUCLEUS_CLASSES, TILE
from unetsharp_engines.runtimes.base import Runtime
from unetsharp_trainer.data.pannuke import UNKNOWN, Fold

__all__ = ["chosen", "examples_picture"]

RANKS = (("worst", 0.0), ("lower quartile", 0.25), ("median", 0.5), ("upper quartile", 0.75), ("best", 1.0))
"""Which patches are shown: their places in the order of bPQ."""

ZOOM = 2
GAP = 12
CAPTION = 46
LEGEND = 64
FILL = 0.25
"""Opacity of a nucleus's colour inside its outline."""
UNKNOWN_COLOR = (150, 150, 150)

_COLORS = np.full((256, 3), UNKNOWN_COLOR, dtype=np.float64)
_COLORS[: len(CLASSES)] = [c.color for c in CLASSES]


def chosen(evaluation: Evaluation) -> list[tuple[str, int]]:
    """Rank and place in ``evaluation.patches`` of those to show; patches whose truth has no nucleus have no rank."""
    binary = np.array(evaluation.panoptic.binary)
    ranked = np.argsort(binary, kind="stable")[: np.count_nonzero(~np.isnan(binary))]
    if not len(ranked):
        return []
    places = {int(ranked[round(quantile * (len(ranked) - 1))]): rank for rank, quantile in reversed(RANKS)}
    return [(rank, place) for place, rank in reversed(places.items())]


def examples_picture(evaluation: Evaluation, runtime: Runtime, folds: Sequence[Fold]) -> Image.Image:
    """The chosen patches, RGB, a row each, predicted anew by the ``runtime`` and ``folds`` of ``evaluation``."""
    by_number = {fold.number: fold for fold in folds}
    rows = [_row(evaluation, runtime, by_number, rank, place) for rank, place in chosen(evaluation)]
    width = 3 * ZOOM * TILE + 2 * GAP
    sheet = Image.new("RGB", (width, LEGEND + sum(row.height + GAP for row in rows)), PAPER)
    _draw_legend(ImageDraw.Draw(sheet))
    top = LEGEND
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + GAP
    return titled(evaluation, [sheet])


def _row(evaluation: Evaluation, runtime: Runtime, folds: dict[int, Fold], rank: str, place: int) -> Image.Image:
    patch = evaluation.patches[place]
    fold = folds[patch.fold]
    image = fold.image(patch.index)
    (said,) = predict(runtime, fold, [patch.index])
    panels = (
        _enlarged(image),
        _painted(image, fold.target(patch.index), fold.instances(patch.index)),
        _painted(image, _class_of_pixels(said), said.instances),
    )
    row = Image.new("RGB", (3 * ZOOM * TILE + 2 * GAP, CAPTION + ZOOM * TILE), PAPER)
    bpq = evaluation.panoptic.binary[place]
    caption = f"{rank}: bPQ {bpq:.3f} - {patch.tissue}, fold {patch.fold}, patch {patch.index}"
    draw = ImageDraw.Draw(row)
    draw.text((0, CAPTION - 12), caption, INK, font(22), anchor="ls")
    for number, (name, panel) in enumerate(zip(("", "truth", "prediction"), panels, strict=True)):
        left = number * (ZOOM * TILE + GAP)
        row.paste(panel, (left, CAPTION))
        draw.text((left + ZOOM * TILE, CAPTION - 12), name, FAINT, font(22), anchor="rs")
    return row


def _class_of_pixels(said: Prediction) -> npt.NDArray[np.uint8]:
    """Channel of each pixel by the nucleus it belongs to."""
    return np.concatenate([[BACKGROUND.channel], said.classes]).astype(np.uint8)[said.instances]


def _painted(
    image: npt.NDArray[np.uint8], channels: npt.NDArray[np.uint8], instances: npt.NDArray[np.int32]
) -> Image.Image:
    """``image`` enlarged, nuclei tinted and outlined in their class's colour; those of unknown class grey."""
    colors = _COLORS[_repeated(channels)]
    nuclei = _repeated(np.where(channels == UNKNOWN, instances.max() + 1, instances))
    opacity = np.where(nuclei > 0, FILL, 0.0)
    opacity[find_boundaries(nuclei, mode="inner")] = 1
    mixed = np.asarray(_enlarged(image)) * (1 - opacity[..., None]) + colors * opacity[..., None]
    return Image.fromarray(mixed.astype(np.uint8))


def _enlarged(image: npt.NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(image).resize((ZOOM * TILE, ZOOM * TILE), Image.Resampling.BICUBIC)


def _repeated(values: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    return values.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)


def _draw_legend(draw: ImageDraw.ImageDraw) -> None:
    entries = [(c.name, c.color) for c in NUCLEUS_CLASSES] + [("Unknown class (truth only)", UNKNOWN_COLOR)]
    left = 0.0
    for name, color in entries:
        draw.rectangle((left, 8, left + 20, 28), outline=color, width=5)
        draw.text((left + 30, 18), name, INK, font(22), anchor="lm")
        left += 30 + draw.textlength(name, font(22)) + 36
