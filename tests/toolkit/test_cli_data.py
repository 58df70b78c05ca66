"""``unetsharp data``, run as a person runs it."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from support.pannuke_folds import fold_arrays, real_fold, released
from unetsharp.cli.app import app
from unetsharp_engines.contract import NUCLEUS_CLASSES

PROGRAM = str(Path(sys.executable).with_name("unetsharp"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    released(tmp_path / "pannuke", 1, real_fold())
    np.save(tmp_path / "pannuke/Fold 1/ignore.npy", np.arange(12)[:, None, None] * np.ones((256, 256)) == 3)
    return tmp_path / "pannuke"


def run(*arguments: object) -> tuple[int, str, str]:
    """In this process, which spares the start-up; one test runs the installed program."""
    done = CliRunner().invoke(app, ["data", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def test_check_shows_what_is_there(root: Path) -> None:
    done = subprocess.run([PROGRAM, "data", "check", root], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    words = " ".join(done.stdout.split())
    for expected in ("Patches 12 12", "Neoplastic 3 3", "Dead 2 2", "unknown nuclei 1 1", "Kidney 6", "nothing wrong"):
        assert expected in words
    assert "Published" not in words, "twelve patches compare with nothing"


def test_check_ends_with_2_and_a_line_for_each_problem(root: Path) -> None:
    arrays = real_fold()
    released(root, 2, {**arrays, "images": arrays["images"][..., ::-1]})
    released(root, 3, fold_arrays(2))
    (root / "Fold 3/images/fold3/types.npy").unlink()
    code, out, error = run("check", root)
    assert code == 2
    problems = [line for line in out.splitlines() if line.startswith("problem:")]
    assert len(problems) == 2, out
    assert error.replace("\n", "").endswith("2 problems, listed above")


def test_check_as_json_is_one_object(root: Path) -> None:
    code, out, _ = run("check", root, "--json")
    report = json.loads(out)
    assert (code, report["problems"]) == (0, [])
    assert report["folds"][0]["nuclei"] == {
        "Neoplastic": 3,
        "Inflammatory": 3,
        "Connective": 2,
        "Dead": 2,
        "Epithelial": 2,
    }
    assert report["folds"][0]["patches_with_unknown"] == 1


def test_the_whole_data_set_is_compared_with_what_was_published() -> None:
    from rich.console import Console

    from unetsharp.cli.data import _described
    from unetsharp_trainer.data.check import PUBLISHED_NUCLEI, PUBLISHED_PATCHES, DataReport, FoldReport

    third = {name: count // 3 for name, count in PUBLISHED_NUCLEI.items()}
    folds = [
        FoldReport(
            fold=k,
            patches=n,
            image_dtype="float64",
            mask_dtype="float64",
            tissues={"Bile-duct": n},
            nuclei=third,
            patches_with_unknown=0,
        )
        for k, n in PUBLISHED_PATCHES.items()
    ]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(_described(DataReport(folds=folds)))
    words = " ".join(console.export_text().split())
    assert "Patches 2,656 2,523 2,722 7,901 7,901" in words
    assert "Neoplastic 25,801 25,801 25,801 77,403 77,403" in words
    assert "Nuclei 63,246 63,246 63,246 189,738 189,744" in words


def test_preview_draws_the_sheet(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("albumentations", reason="augmentation is part of the train extra")
    sheet = tmp_path / "sheets" / "sheet.png"
    code, out, _ = run("preview", root, "-o", sheet, "--count", 2, "--json")
    told = json.loads(out)
    assert (code, told["sheet"], told["fold"], len(told["patches"])) == (0, str(sheet), 1, 2)
    pixels = np.asarray(Image.open(sheet).convert("RGB"))
    assert pixels.shape == (150 + 2 * 398 + 64, 2 * 40 + 190 + 2 * 398 + 4 * 350 - 14, 3)
    rows = pixels[150:-64]
    for number in told["patches"]:
        color = NUCLEUS_CLASSES[number % 5].color  # what patch `number` of the fixture holds
        assert (rows == color).all(axis=-1).sum() > 500, "its outlines are drawn in its class's colour"
    again = tmp_path / "again.png"
    assert run("preview", root, "-o", again, "--count", 2)[0] == 0
    np.testing.assert_array_equal(np.asarray(Image.open(again)), np.asarray(Image.open(sheet)))
    other = json.loads(run("preview", root, "-o", again, "--count", 2, "--seed", 1, "--json")[1])
    assert not np.array_equal(np.asarray(Image.open(again)), pixels)
    assert other["patches"] != told["patches"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--fold", 7), "no fold 7; --fold can be 1"),
        (("-o", "sheet.docx"), "'.docx' names no picture format; end it in .png"),
        (("--size", 300), "training size 300 px cannot be cut"),
    ],
)
def test_preview_tells_mistakes_in_one_line(root: Path, options: tuple[object, ...], line: str) -> None:
    pytest.importorskip("albumentations", reason="augmentation is part of the train extra")
    code, out, error = run("preview", root, "-o", root / "sheet.png", *options)
    assert (code, out) == (2, "")
    assert line in " ".join(error.split())
    assert "Traceback" not in error


@pytest.mark.parametrize("name", ["check", "preview"])
def test_help_shows_an_example(name: str) -> None:
    code, out, _ = run(name, "--help")
    assert code == 0
    assert f"unetsharp data {name} pannuke" in out
