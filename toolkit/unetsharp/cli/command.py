"""What every command has: ``--json``, ``-v``, ``-q``, and the boundary where exceptions become one line and a code."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from unetsharp.cli.output import Output, Verbosity
from unetsharp_engines.errors import UnetSharpError

__all__ = ["INTERRUPTED", "command"]

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else there.")]
_Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")]
_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only the result, warnings and errors.")]

_SHARED = tuple(
    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
    for name, annotation in (("as_json", _Json), ("verbose", _Verbose), ("quiet", _Quiet))
)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make ``function`` a command: it gets the `Output` the user chose as keyword ``output``, and may raise.

    A `UnetSharpError` ends the command with its line on standard error and its exit code (the tree is in
    `unetsharp_engines.errors`); Ctrl-C ends it with 130 and how to go on, which is the function's attribute
    ``resume_hint`` if it has one.
    """
    own = [p for p in inspect.signature(function).parameters.values() if p.name != "output"]

    @functools.wraps(function)
    def run(*, as_json: bool, verbose: bool, quiet: bool, **arguments: Any) -> None:
        verbosity = Verbosity.QUIET if quiet else Verbosity.VERBOSE if verbose else Verbosity.NORMAL
        output = Output(as_json=as_json, verbosity=verbosity)
        try:
            function(output=output, **arguments)
        except UnetSharpError as error:
            output.error(str(error))
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            output.error(f"interrupted; {getattr(function, 'resume_hint', 'nothing half-written was kept')}")
            raise typer.Exit(INTERRUPTED) from error

    keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    run.__signature__ = inspect.Signature([*keyword_only, *_SHARED])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*keyword_only, *_SHARED)}
    return run
