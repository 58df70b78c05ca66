"""``unetsharp data``: look at training data before training on it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unetsharp.cli.command import command
from unetsharp.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from unetsharp_trainer.data.check import DataReport
    from unetsharp_trainer.data.pannuke import Fold

__all__ = ["data"]

data = typer.Typer(
    name="data",
    help=(
        "Look at a PanNuke folder before training on it.\n\n\b\nExamples:\n"
        "  unetsharp data check pannuke\n"
        "  unetsharp data preview pannuke -o sheet.png"
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Root = Annotated[Path, typer.Argument(metavar="DIR", help="Folder with PanNuke's folds, as released.")]


def check(root: Root, *, output: Output) -> None:
    """Say what is there, for each fold and class, and what is wrong, a line each.

    Looked for: damaged or missing files, shapes, dtypes, NaN, levels and ids
    out of range, swapped colour channels (nuclei take more red than blue),
    masks of other images (a patch is darker under its own nuclei), nuclei of
    two classes in one pixel, images that folds share.
    Ends with 0 where nothing is wrong, else with 2.

    \b
    Example:
      unetsharp data check pannuke
    """
    from dataclasses import asdict

    from unetsharp_engines.errors import InputError
    from unetsharp_trainer.data.check import check_folds, open_sound_folds

    folds, problems = open_sound_folds(root)
    with output.progress("checking", sum(map(len, folds)), "patches") as advance:
        report = check_folds(folds, advance)
    report.problems[:0] = problems
    output.result({"data": str(root), **asdict(report)}, _described(report))
    if report.problems:
        count = len(report.problems)
        raise InputError(f"{root}: {count} problem{'' if count == 1 else 's'}, listed above")


def preview(
    root: Root,
    sheet: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Picture to write, e.g. sheet.png.")],
    fold: Annotated[int | None, typer.Option(help="Fold to show.", show_default="the first")] = None,
    count: Annotated[int, typer.Option(min=1, max=40, help="Patches to show, a row each.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Other patches, other augmentations.")] = 0,
    size: Annotated[int, typer.Option(help="Side of the training windows, px.")] = 224,
    *,
    output: Output,
) -> None:
    """Draw a contact sheet: patches as they are, stain-normalized, and augmented, outlined in class colours.

    \b
    Example:
      unetsharp data preview pannuke -o sheet.png --fold 2
    """
    from unetsharp_trainer.data.pannuke import open_folds
    from unetsharp_trainer.data.preview import draw_sheet, pick_patches, require_picture, save_sheet

    require_picture(sheet)
    shown = _chosen(open_folds(root), fold, root)
    indices = pick_patches(shown, count, seed)
    save_sheet(draw_sheet(shown, indices, size=size, seed=seed), sheet)
    output.result({"sheet": str(sheet), "fold": shown.number, "patches": indices}, str(sheet))


data.command("check")(command(check))
data.command("preview")(command(preview))


def _chosen(folds: "dict[int, Fold]", number: int | None, root: Path) -> "Fold":
    from unetsharp_engines.errors import InputError

    wanted = min(folds) if number is None else number
    if wanted not in folds:
        raise InputError(f"{root}: no fold {wanted}; --fold can be {', '.join(map(str, folds))}")
    return folds[wanted]


def _described(report: "DataReport") -> "Group":
    from rich.console import Group
    from rich.text import Text

    lines = [Text(f"note: {note}", style="dim") for note in report.notes]
    lines += [Text(f"problem: {problem}", style="red") for problem in report.problems]
    lines += [] if report.problems else [Text("nothing wrong was found", style="green")]
    return Group(_contents_table(report), _tissue_table(report), *lines)


def _contents_table(report: "DataReport") -> "Table":
    from unetsharp_trainer.data.check import PUBLISHED_NUCLEI, PUBLISHED_PATCHES

    folds, published = report.folds, report.is_complete_pannuke
    table = _table("", *(f"Fold {fold.fold}" for fold in folds), "All", *(["Published"] if published else []))

    def row(name: str, values: list[int], expected: int) -> None:
        cells = [f"{value:,}" for value in (*values, sum(values), *([expected] if published else []))]
        table.add_row(name, *cells)

    table.add_row("Images", *(fold.image_dtype for fold in folds))
    table.add_row("Masks", *(fold.mask_dtype for fold in folds))
    row("Patches", [fold.patches for fold in folds], sum(PUBLISHED_PATCHES.values()))
    row("  with unknown nuclei", [fold.patches_with_unknown for fold in folds], 0)
    row("Nuclei", [sum(fold.nuclei.values()) for fold in folds], sum(PUBLISHED_NUCLEI.values()))
    for name, expected in PUBLISHED_NUCLEI.items():
        row(f"  {name}", [fold.nuclei[name] for fold in folds], expected)
    return table


def _tissue_table(report: "DataReport") -> "Table":
    table = _table("Patches by tissue", *(f"Fold {fold.fold}" for fold in report.folds))
    for tissue in sorted({tissue for fold in report.folds for tissue in fold.tissues}):
        table.add_row(tissue, *(f"{fold.tissues.get(tissue, 0):,}" for fold in report.folds))
    return table


def _table(first: str, *others: str) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    table.add_column(first, min_width=22)
    for name in others:
        table.add_column(name, justify="right")
    return table
