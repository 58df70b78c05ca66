"""``unetsharp infer`` as a person runs it: files, folders, mistakes, interruptions; and the overlap, shown to work."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image
from typer.testing import CliRunner, Result

import unetsharp
import unetsharp.runtimes
from support.painted import Disc, painted
from unetsharp.infer.run import FORMATS
from unetsharp.infer.tiling import Axis, Grid, Predict, blend
from unetsharp_engines.contract import BACKGROUND, SIDE_MULTIPLE
from unetsharp_engines.model_info import ModelInfo
from unetsharp_engines.runtimes.base import Runtime
from unetsharp_engines.runtimes.fake import FakeRuntime
from unetsharp_engines.runtimes.onnxruntime import OnnxRuntime
from unetsharp_engines.stain import IDENTITY, StainPlan

ASSETS = Path(unetsharp.__file__).parent / "assets"
PROGRAM = str(Path(sys.executable).with_name("unetsharp"))


DISCS: list[Disc] = [(40, 40, 12, "Neoplastic"), (90, 50, 10, "Inflammatory"), (60, 95, 11, "Connective")]
INFO = ModelInfo(name="painter", encoder="none", width=1, train_size=256, untaught=("Epithelial", "Dead"))

Infer = Callable[..., Result]


@pytest.fixture
def infer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Infer:
    """The command in this process, with the fake network; results go to ``tmp_path / "out"``."""
    from unetsharp.cli.app import app

    (tmp_path / "net.onnx").write_bytes(b"the file of the fake network")
    monkeypatch.setattr(unetsharp.runtimes, "open_runtime", lambda _model, _name, **_options: FakeRuntime(INFO))

    def run(*arguments: object) -> Result:
        words = ["infer", *map(str, arguments), "-m", str(tmp_path / "net.onnx"), "-o", str(tmp_path / "out")]
        return CliRunner().invoke(app, words)

    return run


def save(path: Path, picture: npt.NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


def a_picture(path: Path) -> Path:
    return save(path, painted(120, 130, DISCS))


def record(tmp_path: Path) -> dict[str, Any]:
    return dict(json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8")))


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_picture(infer: Infer, tmp_path: Path) -> None:
    done = infer(a_picture(tmp_path / "slide 1.png"), "--stain", "none", "--mpp", 0.25)
    assert done.exit_code == 0, done.output
    expected = ["counts.csv", "run.json", *(f"slide 1{kind.ending}" for kind in FORMATS.values())]
    assert listing(tmp_path / "out") == sorted(expected)
    assert "slide 1" in done.stdout
    assert "slide 1_overlay.png" in done.stdout
    with (tmp_path / "out" / "counts.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["picture"], row["total"], row["neoplastic"], row["dead"]) == ("slide 1", "3", "1", "")


def test_the_record_says_what_was_run(infer: Infer, tmp_path: Path) -> None:
    infer(a_picture(tmp_path / "x.png"), "--overlap", 32, "--mpp", 0.25, "--stain", "none")
    told = record(tmp_path)
    assert told["exit_status"] == 0
    assert told["tiling"] == {"tile": 256, "overlap": 32}
    assert told["model"]["untaught"] == ["Epithelial", "Dead"]
    assert len(told["model"]["sha256"]) == 64
    assert told["runtime"] == {"name": "fake", "version": unetsharp.__version__, "device": "cpu"}
    assert {"started", "finished", "python", "packages", "platform", "unetsharp"} <= told.keys()
    (picture,) = told["pictures"]
    assert picture["counts"] == {"Neoplastic": 1, "Inflammatory": 1, "Connective": 1}
    assert picture["mpp_from"] == "--mpp"
    assert np.shape(picture["stain"]["matrix"]) == (3, 3)
    assert picture["stain"]["scope"] == "none"
    assert {"read", "resample", "stain", "network", "classes", "nuclei", "write"} == picture["seconds"].keys()
    assert len(picture["sha256"]) == 64


def test_the_recorded_transform_can_be_given_again(infer: Infer, tmp_path: Path) -> None:
    textured = np.random.default_rng(2).integers(60, 240, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / "x.png", textured)
    infer(path)
    first = record(tmp_path)["pictures"][0]["stain"]
    (tmp_path / "stain.json").write_text(json.dumps(first))
    done = infer(path, "--stain", f"fixed:{tmp_path / 'stain.json'}")
    assert done.exit_code == 0, done.output
    again = record(tmp_path)["pictures"][0]["stain"]
    assert (again["scope"], again["matrix"], again["offset"]) == ("fixed", first["matrix"], first["offset"])


def test_json_is_the_record_and_nothing_else(infer: Infer, tmp_path: Path) -> None:
    done = infer(a_picture(tmp_path / "x.png"), "--json")
    assert json.loads(done.stdout) == record(tmp_path)


def test_formats_are_the_ones_asked_for(infer: Infer, tmp_path: Path) -> None:
    assert infer(a_picture(tmp_path / "x.png"), "--formats", "csv, geojson").exit_code == 0
    assert listing(tmp_path / "out") == ["counts.csv", "run.json", "x.csv", "x.geojson"]
    done = infer(tmp_path / "x.png", "--formats", "csv,png")
    assert done.exit_code == 2
    assert "geojson,csv,overlay,mask" in done.stderr


def test_bad_files_among_twenty_good_ones(infer: Infer, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    for index in range(20):
        a_picture(folder / f"good{index:02}.png")
    (folder / "notes.txt").write_text("not a picture")
    whole = (folder / "good00.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    done = infer(folder, "--stain", "none", "--formats", "csv")
    assert done.exit_code == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert [str(folder / "cut.png") in errors[0], str(folder / "notes.txt") in errors[1]] == [True, True]
    assert "2 of 22 files" in errors[2]
    assert len(errors) == 3
    assert "Traceback" not in done.output
    assert len(list((tmp_path / "out").glob("good*.csv"))) == 20
    told = record(tmp_path)
    assert told["exit_status"] == 2
    assert sum("error" in picture for picture in told["pictures"]) == 2
    assert len((tmp_path / "out" / "counts.csv").read_text().splitlines()) == 21


def test_a_warning_is_told_once_and_then_counted(infer: Infer, tmp_path: Path) -> None:
    for index in range(3):
        a_picture(tmp_path / "in" / f"{index}.png")
    done = infer(tmp_path / "in", "--stain", "none")
    lines = [line for line in done.stderr.splitlines() if "0.25 µm/px" in line]
    assert len(lines) == 2
    assert "and 2 more pictures" in lines[1]
    assert all(any("0.25" in text for text in picture["warnings"]) for picture in record(tmp_path)["pictures"])


def test_only_bad_files_leave_a_record_and_exit_2(infer: Infer, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"")
    done = infer(tmp_path / "x.png")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert record(tmp_path)["pictures"][0]["error"].endswith("it is empty (0 bytes)")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.png"], "no such file"),
        (["x.png", "--mpp", "40"], "0.05 to 4"),
        (["x.png", "--batch", "0"], "1 or more"),
        (["x.png", "--overlap", "129"], "0 to 128"),
        (["x.png", "--stain", "reinhard"], "slide, tile, none or fixed:FILE"),
    ],
)
def test_mistakes_are_one_line(
    infer: Infer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    a_picture(tmp_path / "x.png")
    done = infer(*arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert "Traceback" not in done.output


def test_results_into_an_input_folder_are_refused(infer: Infer, tmp_path: Path) -> None:
    a_picture(tmp_path / "out" / "x.png")
    done = infer(tmp_path / "out")
    assert done.exit_code == 2
    assert listing(tmp_path / "out") == ["x.png"]


def test_a_stated_resolution_is_used_and_mpp_wins(infer: Infer, tmp_path: Path) -> None:
    options = {"resolution": (20000, 20000), "resolutionunit": "centimeter"}
    tifffile.imwrite(tmp_path / "x.tif", painted(60, 60, []), photometric="rgb", **options)  # type: ignore[arg-type]
    assert infer(tmp_path / "x.tif").exit_code == 0
    assert (record(tmp_path)["pictures"][0]["mpp"], record(tmp_path)["pictures"][0]["mpp_from"]) == (0.5, "file")
    done = infer(tmp_path / "x.tif", "--mpp", 0.25)
    assert record(tmp_path)["pictures"][0]["mpp"] == 0.25
    assert "states 0.5 µm/px, and --mpp 0.25 is used" in done.stderr
    assert "is used" not in infer(tmp_path / "x.tif", "--mpp", 0.499).stderr


def test_slips_are_told_before_the_model_is_loaded(
    infer: Infer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_arguments: object, **_options: object) -> None:
        raise AssertionError("it was loaded")

    monkeypatch.setattr(unetsharp.runtimes, "open_runtime", never)
    a_picture(tmp_path / "x.png")
    for option, value in (("--mpp", "0"), ("--formats", "json"), ("--stain", "x"), ("--batch", "0")):
        assert infer(tmp_path / "x.png", option, value).exit_code == 2


def test_an_overlap_that_does_not_fit_is_told_once(infer: Infer, tmp_path: Path) -> None:
    done = infer(a_picture(tmp_path / "x.png"), a_picture(tmp_path / "y.png"), "--overlap", 300)
    assert (done.exit_code, done.stderr.count("error:")) == (2, 1)


@pytest.mark.parametrize(("width", "height"), [(31, 17), (5000, 300), (333, 257)])
def test_odd_sizes(infer: Infer, tmp_path: Path, width: int, height: int) -> None:
    path = save(tmp_path / "x.png", painted(height, width, [(width / 2, height / 2, 6, "Neoplastic")]))
    done = infer(path, "--stain", "none")
    assert done.exit_code == 0, done.output
    (picture,) = record(tmp_path)["pictures"]
    assert (picture["width"], picture["height"], picture["counts"]["Neoplastic"]) == (width, height, 1)
    with Image.open(tmp_path / "out" / "x_mask.png") as mask:
        assert mask.size == (width, height)


def changed(folder: Path, before: dict[str, int]) -> set[str]:
    return {p.name for p in folder.glob("*.csv") if p.stat().st_mtime_ns != before.get(p.name)} - {"counts.csv"}


def times(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}


def test_resume_keeps_what_is_complete_and_equal(infer: Infer, tmp_path: Path) -> None:
    for name in "abc":
        a_picture(tmp_path / "in" / f"{name}.png")
    arguments = (tmp_path / "in", "--stain", "none", "--resume")
    out = tmp_path / "out"
    assert infer(*arguments).exit_code == 0
    before = times(out)
    assert infer(*arguments, "--batch", 3).exit_code == 0
    assert changed(out, before) == set()
    assert len(record(tmp_path)["pictures"]) == 3
    (out / "a_mask.png").unlink()
    save(tmp_path / "in" / "b.png", painted(120, 130, DISCS[:1]))
    assert infer(*arguments).exit_code == 0
    assert changed(out, before) == {"a.csv", "b.csv"}
    assert [p["picture"] for p in record(tmp_path)["pictures"]] == ["a", "b", "c"]
    assert len((out / "counts.csv").read_text().splitlines()) == 4
    before = times(out)
    assert infer(*arguments, "--overlap", 32).exit_code == 0
    assert changed(out, before) == {"a.csv", "b.csv", "c.csv"}
    before = times(out)
    (tmp_path / "net.onnx").write_bytes(b"another network")
    assert infer(*arguments, "--overlap", 32).exit_code == 0
    assert changed(out, before) == {"a.csv", "b.csv", "c.csv"}


def test_resume_refuses_a_broken_record(infer: Infer, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text("{")
    done = infer(a_picture(tmp_path / "x.png"), "--resume")
    assert done.exit_code == 2
    assert "run without --resume" in done.stderr


class Interrupted(FakeRuntime):
    """Ctrl-C comes at the second picture."""

    calls = 0

    def _logits(self, tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan) -> npt.NDArray[np.float32]:
        self.calls += 1
        if self.calls == 2:
            raise KeyboardInterrupt
        return super()._logits(tiles_NHWC, stain)


def test_an_interrupted_run_is_recorded_and_resumed(
    infer: Infer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        a_picture(tmp_path / "in" / f"{name}.png")
    with monkeypatch.context() as patch:
        patch.setattr(unetsharp.runtimes, "open_runtime", lambda _model, _name, **_options: Interrupted(INFO))
        done = infer(tmp_path / "in", "--formats", "csv")
    assert done.exit_code == 130
    assert "--resume" in done.stderr
    assert record(tmp_path)["exit_status"] == 130
    assert [p["picture"] for p in record(tmp_path)["pictures"]] == ["a"]
    before = times(tmp_path / "out")
    assert infer(tmp_path / "in", "--formats", "csv", "--resume").exit_code == 0
    assert changed(tmp_path / "out", before) == {"b.csv", "c.csv"}


# ---- overlap, with the network that ships ------------------------------------------------------------------------


def crop(side: int) -> npt.NDArray[np.uint8]:
    """The bundled crop at the network's resolution, mirrored to ``side`` if it is smaller."""
    with Image.open(ASSETS / "crop.png") as image:
        picture = image.convert("RGB")
        twice = np.asarray(picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.BICUBIC))
    rows, columns = (np.arange(side) % (2 * n) for n in twice.shape[:2])
    ys, xs = (np.minimum(i, 2 * n - 1 - i) for i, n in zip((rows, columns), twice.shape[:2], strict=True))
    return np.ascontiguousarray(twice[np.ix_(ys, xs)])


def remembered(runtime: Runtime) -> Predict:
    """The runtime on pictures as scanned; tiles seen before are not run again."""
    known: dict[bytes, npt.NDArray[np.float32]] = {}

    def predicted(tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        new = [tile for tile in tiles if tile.tobytes() not in known]
        if new:
            found = runtime.probabilities(np.stack(new), StainPlan(IDENTITY))
            known.update((tile.tobytes(), one) for tile, one in zip(new, found, strict=True))
        return np.stack([known[tile.tobytes()] for tile in tiles])

    return partial(map, predicted)


def seam_strength(background: npt.NDArray[np.floating], axis: Axis) -> float:
    """How much larger the background's steps are, from one row to the next, where tiles begin and end than elsewhere.

    Elsewhere is where the network's own grid of `SIDE_MULTIPLE` pixels has lines too.
    """
    steps = np.abs(np.diff(background.astype(np.float32), axis=0)).mean(axis=1)
    edges = {edge for start in axis.starts for edge in (start, start + axis.tile)}
    lines = set(range(axis.starts[0] % SIDE_MULTIPLE or SIDE_MULTIPLE, axis.length, SIDE_MULTIPLE)) - edges
    at_edges, at_lines = (steps[[i - 1 for i in at if 0 < i < axis.length]].mean() for at in (edges, lines))
    return float(at_edges / at_lines)


@pytest.mark.slow
def test_the_tile_grids_place_hardly_matters_and_no_seam_is_seen() -> None:
    """1024² pixels, the tile grid as it is and shifted, one fixed stain transform.

    At the default overlap a shift by half a tile meets the same tiles again, away from the outer border. So a quarter
    is asked too: there each pixel is seen in other surroundings, and how well that agrees is the network's merit.
    """
    picture = crop(1024)
    with OnnxRuntime(ASSETS / "edge.onnx") as runtime:
        predict, half = remembered(runtime), runtime.info.tile // 2
        grids = [Grid.over(picture.shape[:2], tile=2 * half, shift=shift) for shift in (0, half, half // 2)]
        blended = [blend(picture, grid, predict, batch=8, advance=lambda _: None) for grid in grids]
    inner = (slice(None), slice(half, -half), slice(half, -half))
    as_it_is, by_half, by_quarter = (probabilities[inner].argmax(axis=0) for probabilities in blended)
    assert np.mean(as_it_is == by_half) >= 0.995
    assert np.mean(as_it_is == by_quarter) >= 0.985
    background = blended[0][BACKGROUND.channel]
    assert seam_strength(background, grids[0].rows) < 1.3
    assert seam_strength(background.T, grids[0].columns) < 1.3


def test_seam_strength_sees_seams() -> None:
    axis = Axis(640, 256, 128)
    plane = 0.5 + np.random.default_rng(0).normal(0, 0.01, (640, 640))
    assert seam_strength(plane, axis) < 1.1
    for start in axis.starts:
        plane[max(0, start) :] += 0.02
    assert seam_strength(plane, axis) > 1.5


def test_the_installed_command_with_what_ships(tmp_path: Path) -> None:
    save(tmp_path / "x.png", crop(1024)[300:417, 200:331])
    words = [PROGRAM, "infer", str(tmp_path / "x.png"), "-o", str(tmp_path / "out"), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pictures"][0]["width"] == 131
    assert "ship" in done.stderr, "says that it took the weights that ship"
