"""What people install: the three packages under their own names, the shipped network, and no torch in the base."""

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"unetsharp": "toolkit", "unetsharp_trainer": "trainer", "unetsharp_engines": "engines"}
BUILD = "import hatchling.build, sys; print(hatchling.build.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(folder.glob("unetsharp-*.whl")))


def test_holds_every_tracked_source_file_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    expected = {
        path.relative_to(ROOT / root).as_posix()
        for package, root in PACKAGES.items()
        for path in (ROOT / root / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == expected
    assert {name.split("/")[0] for name in held} == set(PACKAGES)
    assert {f"{package}/py.typed" for package in PACKAGES} <= held


@pytest.mark.parametrize("asset", ["edge.onnx", "edge.safetensors", "MODEL_CARD.md", "crop.png"])
def test_carries_the_shipped_network_and_picture(wheel: zipfile.ZipFile, asset: str) -> None:
    assert wheel.getinfo(f"unetsharp/assets/{asset}").file_size > 1000


def test_the_base_install_needs_no_torch(wheel: zipfile.ZipFile) -> None:
    name = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(wheel.read(name).decode())
    base = [r for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r]
    assert base
    assert not [r for r in base if r.startswith(("torch", "timm", "tensorrt", "pycuda", "albumentations"))]
    assert set(metadata.get_all("Provides-Extra", [])) == {"train", "export", "gpu", "rtx", "wsi", "dev"}
    entry_points = wheel.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert "unetsharp = unetsharp.cli:main" in entry_points
