"""``unetsharp inspect``: what a file is."""

from pathlib import Path
from typing import Annotated

import typer

from unetsharp.cli.output import Output
from unetsharp_engines.errors import InputError


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Weights, ONNX, bundle folder or engine.")],
    *,
    output: Output,
) -> None:
    """Say what a file is: network, precision, shapes, operations, hashes, and where it can run.

    Files are told by their content. Nothing in them is executed; an engine is never loaded.

    \b
    Example:
      unetsharp inspect bundle
    """
    from unetsharp.inspection import look_at
    from unetsharp.inspection.tables import table_of

    facts = look_at(file)
    output.result(facts, table_of(facts))
    if problems := facts.get("problems"):
        raise InputError("; ".join(problems))
