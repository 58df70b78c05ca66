"""The builder's use of TensorRT, checked by mypy against the stubs that are published for TensorRT.

The builder takes the module as an argument, since there are two, so mypy sees Any there. Here it is checked with the
module written in. The stubs cannot be installed beside it: they make an empty package called tensorrt. So:

    pip download --no-deps -d stubs tensorrt-stubs && python -m zipfile -e stubs/tensorrt_stubs*.whl stubs
    UNETSHARP_TENSORRT_STUBS=stubs pytest tests/toolkit/test_tensorrt_types.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import unetsharp.build

STUBS = os.environ.get("UNETSHARP_TENSORRT_STUBS", "")
BUILD = Path(unetsharp.build.__file__).parent
ROOTS = Path(__file__).parents[2]
TYPES = {
    "network: Any": "network: trt.INetworkDefinition",
    "parser: Any": "parser: trt.OnnxParser",
    "builder: Any": "builder: trt.Builder",
    "config: Any": "config: trt.IBuilderConfig",
    "def _config(loaded: Loaded, plan: Plan, builder: trt.Builder) -> Any": "def _config(loaded: Loaded, plan: Plan, "
    "builder: trt.Builder) -> trt.IBuilderConfig",
    "def _builder(loaded: Loaded, log: Any) -> Any": "def _builder(loaded: Loaded, log: Any) -> trt.Builder",
    "    trt = loaded.trt\n": "",
    "loaded.trt.": "trt.",
    "trt: Any, ": "",
    "loaded.trt, ": "",
    "_logger(loaded.trt": "_logger(",
    "monitor(loaded.trt, ": "monitor(",
    "  # type: ignore[misc]  # the base is known at run time only": "",
}
KNOWN = ('"set_shape"', "compute_capabilit", "ComputeCapability")
"""Tuples are taken for Dims; compute capabilities are TensorRT-RTX's own, and only set there."""


@pytest.mark.skipif(not STUBS, reason="UNETSHARP_TENSORRT_STUBS names no folder with the stubs; see the docstring")
def test_the_builder_calls_what_tensorrt_has(tmp_path: Path) -> None:
    package = tmp_path / "typed_build"
    package.mkdir()
    (package / "__init__.py").touch()
    for name in ("builder", "flavours", "progress"):
        source = (
            (BUILD / f"{name}.py").read_text(encoding="utf-8").replace("from unetsharp.build.", "from typed_build.")
        )
        for old, new in TYPES.items() if name != "flavours" else ():
            source = source.replace(old, new)
        (package / f"{name}.py").write_text(source.replace("import Any\n", "import Any\nimport tensorrt as trt\n", 1))
    (tmp_path / "mypy.ini").write_text("[mypy]\ncheck_untyped_defs = True\npython_version = 3.10\n")
    paths = [STUBS, str(ROOTS / "toolkit"), str(ROOTS / "engines"), str(tmp_path)]
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "-p", "typed_build"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in done.stdout.splitlines() if line.startswith("typed_build") or "typed_build/" in line]
    assert [line for line in ours if not any(known in line for known in KNOWN)] == [], done.stdout + done.stderr
    assert "Success" in done.stdout or "Found" in done.stdout, done.stderr
