"""``unetsharp inspect``: what a file is."""

from pathlib import Path
from typing import Annotated

import typer

from unetsharp.cli.output import Output
from unetsharp_engines.errors import InputError


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Weights, ONNX, bundle or engine.")],
    *,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw what each layer of an engine moves per image.")
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Let TensorRT load an engine's own file, for its layers: it is code.")
    ] = False,
    output: Output,
) -> None:
    """Say what a file is: network, precision, shapes, operations, hashes, and where it can run.

    Files are told by their content. Nothing in them is executed; only --trust loads an engine.
    Of an ONNX it says which TensorRT takes it, of a bundle who built its engines.

    \b
    Example:
      unetsharp inspect bundle
    """
    from unetsharp.inspection import look_at
    from unetsharp.inspection.engine import draw_layers
    from unetsharp.inspection.tables import table_of

    if picture is not None and picture.suffix != ".svg":
        raise InputError(f"--picture {picture}: wanted a name that ends in .svg")
    facts = look_at(file, trust=trust)
    if picture is not None:
        draw_layers(facts, picture)
    output.result(facts, table_of(facts))
    if problems := facts.get("problems"):
        raise InputError("; ".join(problems))
