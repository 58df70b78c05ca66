"""The report as a terminal shows it."""

from pathlib import Path
from typing import TYPE_CHECKING

from unetsharp.validate.markup import milliseconds, number, share
from unetsharp.validate.validation import Validation
from unetsharp.validate.words import headline, summary

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

__all__ = ["human"]


def human(validation: Validation, page: Path) -> "RenderableType":
    """Verdict, gates and chain, and where the page is."""
    from rich.console import Group
    from rich.text import Text

    verdict = [Text(headline(validation), style="bold"), Text(summary(validation)), Text()]
    return Group(*verdict, _gates(validation), _chain(validation), Text(f"Report: {page}"))


def _gates(validation: Validation) -> "Table":
    table = _table("Gate", "Step", "Value", "Limit", "")
    for gate in validation.assessment.gates:
        mark = "pass" if gate.passed else "[red]FAIL[/red]"
        table.add_row(gate.name, gate.step, share(gate.kept.value), f"≥ {share(gate.limit)}", mark)
    return table


def _chain(validation: Validation) -> "Table":
    table = _table("Step", "Precision", "Same class", "Dice", "MB", "ms a patch")
    for result in validation.assessment.steps:
        change = result.against_reference
        table.add_row(
            result.ran.step.title,
            result.ran.step.precision.upper(),
            "reference" if change is None else share(change.pair["agreement"].value),
            number(result.measures["dice_foreground"].value),
            number(result.ran.step.size / 1e6, ".3g"),
            milliseconds(result.ran.milliseconds),
        )
    for not_run in validation.assessment.not_run:
        size = number(not_run.step.size / 1e6, ".3g")
        table.add_row(not_run.step.title, not_run.step.precision.upper(), "NOT RUN", "", size, "")
    return table


def _table(first: str, *others: str) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table
