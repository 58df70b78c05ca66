"""The command line of a script that works in steps on one folder: ``python benchmarks/SCRIPT.py STEP WORK``."""

import argparse
from collections.abc import Callable
from pathlib import Path

__all__ = ["WorkSteps"]


class WorkSteps:
    """Steps by name; the parsed arguments hold the chosen one as ``function`` and its folder as ``work``."""

    def __init__(self, description: str | None) -> None:
        self.parser = argparse.ArgumentParser(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        self._steps = self.parser.add_subparsers(required=True)

    def add(self, name: str, function: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        """A step, which ``function`` does; its further arguments are added to what comes back."""
        added = self._steps.add_parser(name, help=function.__doc__)
        added.set_defaults(function=function)
        added.add_argument("work", type=Path, metavar="WORK", help="folder for all files")
        return added
