"""The ``unetsharp`` program: its commands in the order a user meets them."""

from typing import Annotated

import typer

from unetsharp.cli.bench import bench
from unetsharp.cli.build_engine import build_engine
from unetsharp.cli.command import command
from unetsharp.cli.data import data
from unetsharp.cli.demo import demo
from unetsharp.cli.doctor import doctor
from unetsharp.cli.evaluate import evaluate
from unetsharp.cli.export import export
from unetsharp.cli.infer import infer
from unetsharp.cli.inspect import inspect
from unetsharp.cli.quantize import quantize
from unetsharp.cli.train import train
from unetsharp.cli.validate import validate

app = typer.Typer(
    name="unetsharp",
    help=(
        "U-Net# nuclei segmentation in H&E histology: train, export, build engines, infer, "
        "and prove what each step cost."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from unetsharp_engines import __version__

        typer.echo(f"unetsharp {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


# Command modules are light: what a command needs is imported when it runs.
COMMANDS: tuple[tuple[str, object], ...] = (
    ("demo", demo),
    ("train", train),
    ("evaluate", evaluate),
    ("export", export),
    ("quantize", quantize),
    ("build-engine", build_engine),
    ("validate", validate),
    ("infer", infer),
    ("bench", bench),
    ("inspect", inspect),
    ("doctor", doctor),
)

for _name, _function in COMMANDS:
    app.command(_name)(command(_function))  # type: ignore[arg-type]
app.add_typer(data)


def main() -> None:
    """Run the command line with the process's arguments."""
    app()
