"""The installed program as a person meets it: help, version, mistakes, speed."""

import inspect
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from unetsharp.cli.export import export
from unetsharp.cli.infer import infer
from unetsharp.cli.quantize import quantize
from unetsharp.export.exporter import ExportSettings
from unetsharp.infer.run import FORMATS
from unetsharp.quantize.quantizer import QuantizeSettings
from unetsharp_engines.contract import TILE

PROGRAM = str(Path(sys.executable).with_name("unetsharp"))
COMMANDS = {
    "bench",
    "demo",
    "train",
    "evaluate",
    "data",
    "export",
    "quantize",
    "build-engine",
    "validate",
    "infer",
    "inspect",
    "doctor",
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, check=False)


def registered() -> set[str]:
    from typer.main import get_group

    from unetsharp.cli.app import app

    return set(get_group(app).commands)


def test_the_commands_are_the_documented_ones() -> None:
    assert registered() == COMMANDS


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_of_each_command_shows_an_example(name: str) -> None:
    done = run(name, "--help")
    assert done.returncode == 0
    assert f"unetsharp {name}" in done.stdout.split("Usage:")[1].split("\n", 1)[1], "an example that runs"


def test_help_is_fast() -> None:
    seconds = []
    for _ in range(10):
        before = os.times()
        assert run("--help").returncode == 0
        after = os.times()
        seconds.append(sum(after[2:4]) - sum(before[2:4]))
    # Processor time of the child: other tests share the cores, so wall time here would measure them.
    assert statistics.median(seconds) < 0.3, seconds


def test_version() -> None:
    assert run("--version").stdout.startswith("unetsharp 0.")


def default(function: Callable[..., None], option: str) -> object:
    return inspect.signature(function).parameters[option].default


def test_options_default_to_what_the_packages_default_to() -> None:
    """The command modules import neither numpy nor the contract, so their defaults are written there a second time."""
    assert default(export, "size") == TILE
    assert default(export, "opset") == ExportSettings().opset
    assert set(str(default(infer, "formats")).split(",")) == set(FORMATS)
    settings = QuantizeSettings()
    assert (default(quantize, "method"), default(quantize, "images")) == (settings.method, settings.images)
    assert default(quantize, "max_dice_drop") == settings.budget.max_dice_drop
    assert default(quantize, "min_agreement") == settings.budget.min_agreement


def test_a_mistyped_command_exits_2_and_names_the_near_one() -> None:
    done = run("infre", "x.png")
    assert done.returncode == 2
    assert "infer" in done.stderr
    assert "Traceback" not in done.stderr


def test_json_is_one_object_and_nothing_else() -> None:
    done = run("doctor", "--json")
    assert done.returncode == 0
    assert isinstance(json.loads(done.stdout), dict)
