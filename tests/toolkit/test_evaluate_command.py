"""``unetsharp evaluate`` as a person runs it, on an ONNX and a PanNuke folder."""

import csv
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from support.painted_folds import Square, fold_of, save_painter_onnx
from support.pannuke_folds import released

PROGRAM = str(Path(sys.executable).with_name("unetsharp"))
RIGHT: list[Square] = [("Neoplastic", 10, 10, 20), ("Epithelial", 100, 40, 16)]
WRONG: list[Square] = [("Neoplastic", 10, 10, 20), ("Dead", 200, 200, 16)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``model.onnx`` and ``PanNuke``: fold 1 predicted perfectly, fold 3 in part."""
    folder = tmp_path_factory.mktemp("evaluate")
    save_painter_onnx(folder / "model.onnx")
    released(folder / "PanNuke", 1, fold_of([("Colon", RIGHT, RIGHT)]))
    released(folder / "PanNuke", 3, fold_of([("Colon", RIGHT, RIGHT), ("Breast", RIGHT, WRONG)]))
    return folder


def run(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [PROGRAM, "evaluate", "model.onnx", *arguments]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)


def strict_json(text: str) -> dict[str, object]:
    """Parse JSON as its standard has it: without NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    parsed: dict[str, object] = json.loads(text, parse_constant=refuse)
    return parsed


def test_tables_for_people_and_a_report(place: Path) -> None:
    done = run(place, "--data", "PanNuke", "--fold", "3", "--out", "report")
    assert done.returncode == 0, done.stderr
    for words in ("Pixels by class", "Nuclei by class", "Tissues", "absent", "Without background, pooled", "mPQ"):
        assert words in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    report = place / "report"
    names = {"confusion.png", "evaluation.json", "evaluation.md", "examples.png", "patches.csv"}
    assert {path.name for path in report.iterdir()} == names
    assert all(f"report/{name}" in done.stderr for name in names)
    assert strict_json((report / "evaluation.json").read_text())["folds"] == [3]
    assert (report / "evaluation.md").read_text().startswith("# painter on fold 3\n")
    with (report / "patches.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["tissue"], row["bpq"], row["pq_dead"]) for row in rows] == [
        ("Colon", "1.0000", ""),
        ("Breast", "0.5000", ""),
    ]
    for picture in ("confusion.png", "examples.png"):
        with Image.open(report / picture) as image:
            assert min(image.size) > 500


def test_json_is_the_same_result_and_nothing_else_on_standard_output(place: Path) -> None:
    done = run(place, "--data", "PanNuke", "--fold", "1", "--json", "--runtime", "onnxruntime")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["files"] == []
    assert result["panoptic"]["mpq"] == pytest.approx(1, abs=2e-6)
    assert result["pixels"]["average_without_background_pooled"] == {"iou": 1.0, "dice": 1.0}
    assert result["pixels"]["classes"]["Dead"]["presence"] == "absent"
    assert result["system"]["runtime"]["name"] == result["arguments"]["runtime"] == "onnxruntime"
    assert result["model"]["sha256"] == hashlib.sha256((place / "model.onnx").read_bytes()).hexdigest()


def test_two_folds_are_judged_as_one(place: Path) -> None:
    done = run(place, "--data", "PanNuke", "--fold", "1+3", "--json", "-q")
    result = json.loads(done.stdout)
    assert result["folds"] == [1, 3]
    assert result["patches"] == 3
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "PanNuke", "--fold", "2"], "has no fold 2; it has 1, 3"),
        (["--data", "nowhere", "--fold", "3"], "nowhere: no such folder"),
        (["--data", "PanNuke", "--fold", "3", "--runtime", "torch"], "model.onnx"),
    ],
)
def test_mistakes_end_in_one_line_and_exit_2(place: Path, arguments: list[str], words: str) -> None:
    done = run(place, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert words in line
