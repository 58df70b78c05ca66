"""The command line: one module per command; `app` gathers them, `command` is their common boundary."""

from unetsharp.cli.app import main

__all__ = ["main"]
