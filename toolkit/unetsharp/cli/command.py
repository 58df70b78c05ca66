"""What every command has: ``--json``, ``-v``, ``-q``, and the boundary where exceptions become one line and a code."""

import errno
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from unetsharp.cli.output import Output, Verbosity
from unetsharp_engines.errors import InputError, UnetSharpError

__all__ = ["INTERRUPTED", "command"]

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

_REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""How a place refuses to be read or written: no fault of the program, wherever it happens."""

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
    `unetsharp_engines.errors`), and so does a disk that is full or closed to the user; Ctrl-C ends it with 130 and how
    to go on, which is the function's attribute ``resume_hint`` if it has one.
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
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            output.error(f"{error.filename}: {error.strerror}" if error.filename else f"{error.strerror}")
            raise typer.Exit(InputError.exit_code) from error
        except KeyboardInterrupt as error:
            output.error(f"interrupted; {getattr(function, 'resume_hint', 'nothing half-written was kept')}")
            raise typer.Exit(INTERRUPTED) from error

    keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    run.__signature__ = inspect.Signature([*keyword_only, *_SHARED])  # type: ignore[attr-defined]
    run.__doc__ = _flowing(function.__doc__ or "")
    run.__annotations__ = {p.name: p.annotation for p in (*keyword_only, *_SHARED)}
    return run


def _flowing(text: str) -> str:
    """A docstring whose paragraphs are a line each, for the terminal to wrap; those that begin with ``\\b`` stay."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(part if part.startswith("\b") else part.replace("\n", " ") for part in paragraphs)
