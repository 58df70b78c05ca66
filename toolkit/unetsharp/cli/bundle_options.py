"""Options of every command that runs a bundle's engine."""

from typing import Annotated

import typer

__all__ = ["Rebuild", "Trust"]

Trust = Annotated[
    bool,
    typer.Option(
        "--trust", help="Run a bundle's engine though others built it: an engine is code. ONNX needs no trust."
    ),
]
Rebuild = Annotated[
    bool,
    typer.Option("--rebuild", help="Where a bundle's engines do not fit, build one here and keep it in the bundle."),
]
