"""The one sink for what commands say: results to standard output, everything else to standard error."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["Advance", "Output", "Verbosity", "facts"]


class Verbosity(Enum):
    """How much a command says on standard error."""

    QUIET = 0
    NORMAL = 1
    VERBOSE = 2


class Advance:
    """Handle of a running progress bar: call it with the number of items just done and, if wanted, a new text."""

    def __init__(self, bar: Any = None, task: Any = None) -> None:
        self._bar = bar
        self._task = task

    def __call__(self, steps: float = 1, text: str | None = None) -> None:
        """Move on by ``steps`` items; ``text`` replaces the description."""
        if self._bar is not None:
            self._bar.update(self._task, advance=steps, **({} if text is None else {"description": text}))


class Output:
    """Where a command's words go.

    With ``as_json`` standard output gets exactly one JSON object, by `result`, and nothing else. Messages, warnings,
    errors and progress go to standard error; progress bars vanish when that is no terminal.
    """

    def __init__(self, *, as_json: bool = False, verbosity: Verbosity = Verbosity.NORMAL) -> None:
        self.as_json = as_json
        self.verbosity = verbosity

    def result(self, data: Mapping[str, Any], human: "RenderableType | None" = None) -> None:
        """Print the command's result: ``data`` as JSON, or ``human`` (rich renderable; nothing if None) for people."""
        if self.as_json:
            sys.stdout.write(json.dumps(data, default=str) + "\n")
        elif human is not None:
            self._console(sys.stdout).print(human, crop=False)  # paths are to be copied whole

    def say(self, message: str) -> None:
        """Tell the user one line. Rich markup is not interpreted: file names may hold brackets."""
        if self.verbosity is not Verbosity.QUIET:
            self._line(message)

    def detail(self, message: str) -> None:
        """Tell one line that only ``-v`` shows."""
        if self.verbosity is Verbosity.VERBOSE:
            self._line(message, style="dim")

    def warn(self, message: str) -> None:
        """Tell one line the user should not miss; shown even with ``-q``."""
        self._line(f"warning: {message}", style="yellow")

    def error(self, message: str) -> None:
        """Tell the one line that ends the command."""
        self._line(f"error: {message}", style="red")

    @contextmanager
    def progress(self, text: str, total: float | None, unit: str = "tiles") -> Iterator[Advance]:
        """Show a bar with count, rate (``unit``/s) and time left while the block runs; yields its `Advance`."""
        console = self._console(sys.stderr)
        if self.verbosity is Verbosity.QUIET or not console.is_terminal:
            yield Advance()
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _rate_column(unit),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        )
        with Progress(*columns, console=console, transient=False) as bar:
            yield Advance(bar, bar.add_task(text, total=total))

    def _line(self, message: str, style: str | None = None) -> None:
        self._console(sys.stderr).print(message, style=style, markup=False, highlight=False, soft_wrap=True)

    def _console(self, stream: Any) -> "Console":
        from rich.console import Console

        return Console(file=stream)


def facts(rows: Mapping[str, str]) -> "RenderableType":
    """Names beside values, a line each, as commands end with; values too long for the terminal go on below."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(name, Text(value, overflow="fold"))
    return table


def _rate_column(unit: str) -> Any:
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class RateColumn(ProgressColumn):
        """Items a second, or seconds an item when slower than one a second."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            if not speed:
                return Text(f"– {unit}/s")
            return Text(f"{speed:.1f} {unit}/s" if speed >= 1 else f"{1 / speed:.1f} s a {unit.rstrip('s')}")

    return RateColumn()
