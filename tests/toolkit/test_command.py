"""What every command does the same way: help that flows, places that refuse."""

import errno
import json
import os
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from support.tiny_onnx import save_tiny_onnx
from unetsharp.cli.app import app
from unetsharp.cli.command import command
from unetsharp.cli.output import Output


def app_of(error: OSError | None) -> typer.Typer:
    def work(name: Annotated[str, typer.Argument()] = "", *, output: Output) -> None:
        """Do it.

        A paragraph of two
        lines.

        \b
        Example:
          unetsharp work
        """
        if error is not None:
            raise error
        output.result({"name": name})

    made = typer.Typer(rich_markup_mode="rich")
    made.command()(command(work))
    return made


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "error: No space left on device\n"),
        (PermissionError(errno.EACCES, "Permission denied", "a/masks.npy"), "error: a/masks.npy: Permission denied\n"),
    ],
)
def test_a_place_that_refuses_is_one_line(error: OSError, says: str) -> None:
    done = CliRunner().invoke(app_of(error))
    assert (done.exit_code, done.stderr, done.stdout) == (2, says, "")


def test_other_errors_of_the_system_are_ours_to_see() -> None:
    done = CliRunner().invoke(app_of(FileNotFoundError(errno.ENOENT, "No such file", "x")))
    assert isinstance(done.exception, FileNotFoundError)


def test_paragraphs_of_help_flow_and_examples_stay() -> None:
    lines = [line.strip() for line in CliRunner().invoke(app_of(None), ["--help"]).stdout.splitlines()]
    assert "A paragraph of two lines." in lines
    assert lines[lines.index("Example:") + 1] == "unetsharp work"


@pytest.mark.parametrize(("option", "lines"), [("-q", 0), ("--json", 1), ("-v", 2)])
def test_quiet_says_less_and_verbose_more(tmp_path: Path, option: str, lines: int) -> None:
    words = ["build-engine", str(save_tiny_onnx(tmp_path / "m.onnx")), "-o", str(tmp_path / "b"), option]
    done = CliRunner().invoke(app, [*words, "--runtime", "onnxruntime"])
    assert done.exit_code == 0, done.stderr
    assert len(done.stderr.splitlines()) == lines, done.stderr
    if option == "--json":
        assert json.loads(done.stdout)["manifest"]["precision"] == "fp32"
    else:
        assert "runs on every machine" in done.stdout


def test_a_picture_of_another_kind_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["inspect", str(save_tiny_onnx(tmp_path / "m.onnx")), "--picture", "layers.png"])
    assert (done.exit_code, done.stderr) == (2, "error: --picture layers.png: wanted a name that ends in .svg\n")
