"""The demo as a newcomer runs it, with everything installed and with the deploy install alone."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

BARE = """
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "timm", "safetensors", "tensorrt_rtx", "tensorrt"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
sys.argv = ["unetsharp", "demo", "--json", "--out", sys.argv[1]]
from unetsharp.cli import main
main()
"""


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.targets += [value for name, value in attrs if name in ("href", "src") and value]


def demo(*command: str) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def check_page(out: Path) -> str:
    """Every link leads to a file, and the numbers are the run's."""
    page = (out / "index.html").read_text(encoding="utf-8")
    links = _Links()
    links.feed(page)
    assert "overlay.jpg" in links.targets
    assert all((out / target).is_file() for target in links.targets)
    counts = json.loads((out / "nuclei" / "run.json").read_text(encoding="utf-8"))["pictures"][0]["counts"]
    assert f"<h1>{sum(counts.values()):,} nuclei" in page
    assert sum(counts.values()) > 100, "the crop holds several hundred nuclei"
    assert not re.search(r"\$\w", page), "no placeholder is left"
    return page


def test_the_whole_path(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the whole demo exports from PyTorch; without it the other test stands")
    pytest.importorskip("tensorrt_rtx", reason="the whole demo builds TensorRT-RTX engines")
    program = str(Path(sys.executable).with_name("unetsharp"))
    told = demo(program, "demo", "--json", "--out", str(tmp_path))
    assert told["ran"] == ["Export", "Build engines", "Prove drift", "Find nuclei"]
    assert set(told["skipped"]) <= {"Prove drift"}, "the engine's own drift takes a GPU"
    drift = json.loads((tmp_path / "drift" / "report.json").read_text(encoding="utf-8"))
    assert [gate["gate"] for gate in drift["gates"] if not gate["passed"]] == []
    assert drift["verdict"] == ("incomplete" if told["skipped"] else "passed")
    assert told["seconds"] < 300
    page = check_page(tmp_path)
    assert "Dead and Epithelial" in page, "what the network was never taught is on the page"
    assert (tmp_path / "bundle" / "manifest.json").is_file()
    with Image.open(tmp_path / "overlay.jpg") as picture:
        assert picture.width == 1200
    assert (tmp_path / "overlay.jpg").stat().st_size < 300_000


def test_without_torch_it_starts_from_the_shipped_onnx(tmp_path: Path) -> None:
    told = demo(sys.executable, "-c", BARE, str(tmp_path))
    assert told["ran"] == ["Find nuclei"]
    assert set(told["skipped"]) == {"Export", "Build engines", "Prove drift"}
    assert "pip install" in told["skipped"]["Export"]
    assert "skipped" in check_page(tmp_path)
