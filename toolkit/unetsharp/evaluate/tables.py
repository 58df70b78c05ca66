"""An evaluation as tables that people read: on a terminal, and as Markdown."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unetsharp.evaluate.evaluation import Evaluation, Scores
from unetsharp_engines.contract import BACKGROUND, CLASSES, NUCLEUS_CLASSES
from unetsharp_trainer.metrics.confusion import ConfusionMatrix, Presence, presence_of
from unetsharp_trainer.metrics.detection import RADIUS_UM

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Table", "human", "markdown", "tables"]

_UNDEFINED = "–"

PAPER_DICE = (0.7767, 0.6343, 0.5828, 0.0, 0.7096, 0.9546)
"""U-Net#'s Table II by channel: Dice on PanNuke's fold 3."""
PAPER_POOLED = (0.5593, 0.7174)
"""Its average without background: IoU, Dice. Pooled over pixels (`unetsharp_trainer.metrics.confusion`)."""
PAPER_PATCHES = {3: 2722}
"""The paper's test fold and how many patches PanNuke has in it: the paper's numbers stand beside no other data."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as text, the first column to the left, the rest to the right."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def tables(evaluation: Evaluation) -> list[Table]:
    """Pixels by class, nuclei by class, tissues."""
    overall = evaluation.overall
    pixels = _pixels(overall.pixels, _is_the_papers(evaluation), evaluation.model.untaught)
    return [pixels, _nuclei(evaluation, overall), _tissues(evaluation)]


def human(evaluation: Evaluation) -> "RenderableType":
    """The tables for a terminal."""
    from rich.console import Group

    return Group(*(part for table in tables(evaluation) for part in _rich(table)))


def markdown(evaluation: Evaluation) -> str:
    """The tables as Markdown, under a heading that says what was run on what."""
    model = evaluation.model
    folds = "+".join(map(str, evaluation.folds))
    lines = [
        f"# {model.name} on fold {folds}",
        "",
        f"{len(evaluation.patches):,} patches · encoder {model.encoder}, width {model.width} · "
        f"stain normalization {model.stain} · {evaluation.runtime}",
    ]
    return "\n".join([*lines, *(line for table in tables(evaluation) for line in _markdown(table))]) + "\n"


def _pixels(pixels: ConfusionMatrix, beside_paper: bool, untaught: tuple[str, ...]) -> Table:
    averages = [
        ("Without background, pooled", pixels.pooled_iou(), pixels.pooled_dice()),
        (_mean_name(pixels), pixels.class_mean_iou(), pixels.class_mean_dice()),
        ("Any nucleus", pixels.foreground_iou(), pixels.foreground_dice()),
    ]
    rows = [_pixel_row(pixels, channel) for channel in range(len(CLASSES))]
    rows += [[name, "", "", _score(iou), _score(dice)] for name, iou, dice in averages]
    columns = ["Pixels", "True", "Predicted", "IoU", "Dice"]
    if beside_paper:
        columns += ["Paper's IoU", "Paper's Dice"]
        rows = [row + paper for row, paper in zip(rows, _paper_cells(), strict=True)]
    notes = _pixel_notes(pixels, beside_paper)
    if untaught:
        notes.append(f"This network's training data never showed it: {', '.join(untaught)}.")
    return Table(title="Pixels by class", columns=columns, rows=rows, notes=notes)


def _pixel_row(pixels: ConfusionMatrix, channel: int) -> list[str]:
    counts = f"{pixels.true_pixels[channel]:,}", f"{pixels.predicted_pixels[channel]:,}"
    if pixels.presence[channel] is Presence.ABSENT:
        return [CLASSES[channel].name, *counts, "absent", "absent"]
    mark = " *" if pixels.presence[channel] is Presence.PREDICTED_ONLY else ""
    return [CLASSES[channel].name + mark, *counts, _score(pixels.iou()[channel]), _score(pixels.dice()[channel])]


def _mean_name(pixels: ConfusionMatrix) -> str:
    seen = sum(presence is not Presence.ABSENT for presence in pixels.presence[: BACKGROUND.channel])
    of = "" if seen == len(NUCLEUS_CLASSES) else f" of {seen}"
    return f"Without background, class mean{of}"


def _paper_cells() -> list[list[str]]:
    classes = [["", _score(dice)] for dice in PAPER_DICE]
    return [*classes, [_score(score) for score in PAPER_POOLED], ["", ""], ["", ""]]


def _pixel_notes(pixels: ConfusionMatrix, beside_paper: bool) -> list[str]:
    notes = [
        "Averages without background: pooled counts the nucleus classes' pixels together; in the class mean each "
        "class weighs alike."
    ]
    if Presence.PREDICTED_ONLY in pixels.presence:
        notes.append("* not in the truth, yet predicted: all of it is wrong, and the averages count it as 0.")
    if Presence.ABSENT in pixels.presence:
        notes.append("absent: neither in the truth nor predicted; in no average.")
    if pixels.unknown.any():
        unknown, found = pixels.unknown.sum(), pixels.unknown[: BACKGROUND.channel].sum()
        notes.append(
            f"{unknown:,} pixels are on nuclei of unknown class ({found:,} found as nucleus): they count for "
            "'any nucleus' alone."
        )
    if beside_paper:
        notes.append("Paper: U-Net#, Table II, same fold of PanNuke; its average without background is the pooled one.")
    return notes


def _nuclei(evaluation: Evaluation, overall: Scores) -> Table:
    nuclei = overall.nuclei
    true, predicted = nuclei.true_nuclei.tolist(), nuclei.predicted_nuclei.tolist()
    scores = zip(
        evaluation.panoptic.class_pq(), nuclei.class_precision(), nuclei.class_recall(), nuclei.class_f1(), strict=True
    )
    rows = []
    for tissue_class, t, p, (pq, *rest) in zip(NUCLEUS_CLASSES, true, predicted, scores, strict=True):
        absent = presence_of(t, p) is Presence.ABSENT
        cells = ["absent"] * 4 if absent else [*map(_score, rest), _score(pq)]
        rows.append([tissue_class.name, f"{t:,}", f"{p:,}", *cells])
    found = [_score(score) for score in (nuclei.precision(), nuclei.recall(), nuclei.f1())]
    rows.append(["Any class", f"{sum(true):,}", f"{sum(predicted):,}", *found, ""])
    return Table(
        title="Nuclei by class",
        columns=["Nuclei", "True", "Predicted", "Precision", "Recall", "F1", "PQ"],
        rows=rows,
        notes=_nucleus_notes(overall),
    )


def _nucleus_notes(overall: Scores) -> list[str]:
    notes = [
        f"A nucleus is found when its centroid is within {RADIUS_UM:g} µm; {_percent(overall.nuclei.class_accuracy())} "
        "of those found have the right class. PQ: mean over the patches whose truth has the class.",
        f"{_UNDEFINED}: undefined, for want of true or of predicted nuclei.",
    ]
    if overall.unjudged:
        notes.append(f"Not judged, since they lie on nuclei of unknown class: {overall.unjudged:,} of the predicted.")
    return notes


def _tissues(evaluation: Evaluation) -> Table:
    rows = [
        [row.tissue, f"{row.images:,}", _score(row.mpq), _score(row.bpq), *_of_tissue(evaluation.tissues[row.tissue])]
        for row in evaluation.panoptic.by_tissue()
    ]
    means = [_score(evaluation.panoptic.mpq()), _score(evaluation.panoptic.bpq())]
    rows.append(["Mean", f"{len(evaluation.patches):,}", *means, "", "", ""])
    return Table(
        title="Tissues",
        columns=["Tissue", "Patches", "mPQ", "bPQ", "Pooled Dice", "Nucleus Dice", "F1"],
        rows=rows,
        notes=[
            "mPQ (by class) and bPQ (of any class) as PanNuke defines them: nuclei match at IoU > 0.5. Pooled Dice: "
            "the classes' pixels without background. Nucleus Dice: pixels of any nucleus. F1: any nucleus found."
        ],
    )


def _of_tissue(scores: Scores) -> list[str]:
    return [_score(s) for s in (scores.pixels.pooled_dice(), scores.pixels.foreground_dice(), scores.nuclei.f1())]


def _is_the_papers(evaluation: Evaluation) -> bool:
    """Whether this is PanNuke's own fold 3, on which the paper tested."""
    (fold, *more) = evaluation.folds
    return not more and PAPER_PATCHES.get(fold) == len(evaluation.patches)


def _score(value: float) -> str:
    return _UNDEFINED if math.isnan(value) else f"{value:.4f}"


def _percent(value: float) -> str:
    return _UNDEFINED if math.isnan(value) else f"{value:.1%}"


def _rich(table: Table) -> list["RenderableType"]:
    from rich import box
    from rich.padding import Padding
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(title=table.title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for number, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if number else "left")
    for row in table.rows:
        shown.add_row(*map(Text, row))
    return [shown, *(Padding(Text(note, style="dim"), (0, 0, 0, 1)) for note in table.notes), Text()]


def _markdown(table: Table) -> list[str]:
    rule = [":--", *["--:"] * (len(table.columns) - 1)]
    rows = [table.columns, rule, *table.rows]
    notes = [line for note in table.notes for line in ("", note.replace("* ", "\\* ", 1))]
    return ["", f"## {table.title}", "", *(f"| {' | '.join(row)} |" for row in rows), *notes]
