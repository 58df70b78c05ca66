"""The folders in which programs keep a user's own things, by the environment that says where they are."""

import sys
from pathlib import Path

import pytest


def keep_in(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Let this process, and those it starts, keep keys for engines and compiled kernels below ``root``.

    `typer.get_app_dir` and `unetsharp_engines.cuda.compiling` ask the environment, each system's in its own way: a
    Mac knows the home folder alone.
    """
    names = {"win32": ("APPDATA", "LOCALAPPDATA"), "darwin": ("HOME", "XDG_CACHE_HOME")}
    for name in names.get(sys.platform, ("XDG_CONFIG_HOME", "XDG_CACHE_HOME")):
        patch.setenv(name, str(root / name))
