"""Where a run's words go: the command line's `unetsharp.cli.output.Output` is one such place."""

from contextlib import AbstractContextManager
from typing import Protocol

__all__ = ["Advance", "Reporter"]


class Advance(Protocol):
    """A running progress bar."""

    def __call__(self, steps: float = 1, text: str | None = None) -> None:
        """Move on by ``steps``; ``text`` replaces the description."""


class Reporter(Protocol):
    """Lines and progress bars for people."""

    def say(self, message: str) -> None:
        """Tell one line."""

    def warn(self, message: str) -> None:
        """Tell one line that should not be missed."""

    def progress(self, text: str, total: float | None, unit: str = "tiles") -> AbstractContextManager[Advance]:
        """Show a bar while the block runs."""
