"""Bundles, as folders and as zips: written whole, replaced whole, read as they were written."""

import dataclasses
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from support.bundles import ENGINE, ONNX, engine_entry, manifest_of, own, written
from unetsharp.build.bundle import Bundle, check_replaceable, open_bundle, problems_of, with_engine, write_bundle
from unetsharp.model_files import ModelKind, kind_of
from unetsharp_engines.errors import InputError


@pytest.fixture(params=["bundle", "bundle.zip"])
def bundle(tmp_path: Path, request: pytest.FixtureRequest) -> Bundle:
    return written(tmp_path / "made" / request.param)


def names_in(root: Path) -> list[str]:
    if root.is_dir():
        return sorted(path.name for path in root.iterdir())
    return sorted(zipfile.ZipFile(root).namelist())


def test_what_was_written_is_read(bundle: Bundle) -> None:
    assert kind_of(bundle.root) is ModelKind.BUNDLE
    again = open_bundle(bundle.root)
    assert again.manifest == manifest_of()
    assert again.read_onnx() == ONNX
    assert again.read_engine(again.manifest.engines[0]) == ENGINE
    assert problems_of(again) == []


def test_equal_bundles_are_equal_zips(tmp_path: Path) -> None:
    one, other = (written(tmp_path / name).root.read_bytes() for name in ("one.zip", "other.zip"))
    assert one == other


def test_a_folder_zipped_by_hand_is_the_same_bundle(tmp_path: Path) -> None:
    """With Python's tool and with zip -0, which stores; with plain zip, which compresses, the way out is told."""
    root = written(tmp_path / "bundle").root
    with zipfile.ZipFile(tmp_path / "python.zip", "w") as packed:
        for path in root.iterdir():
            packed.write(path, path.name)
    assert open_bundle(tmp_path / "python.zip").manifest == manifest_of()
    if shutil.which("zip"):
        subprocess.run(["zip", "-q", "-0", "-r", "../stored.zip", "."], cwd=root, check=True)
        assert open_bundle(tmp_path / "stored.zip").manifest == manifest_of()
        subprocess.run(["zip", "-q", "-r", "../deflated.zip", "."], cwd=root, check=True)
        with pytest.raises(InputError, match="is compressed; pack the bundle with `zip -0`"):
            open_bundle(tmp_path / "deflated.zip")
        subprocess.run(["zip", "-q", "-0", "-r", "around.zip", "bundle"], cwd=tmp_path, check=True)
        with pytest.raises(InputError, match=r"without manifest\.json at its top; zip the files"):
            open_bundle(tmp_path / "around.zip")


def test_a_bundle_is_replaced_whole_and_nothing_is_left_beside_it(bundle: Bundle) -> None:
    onnx_alone = dataclasses.replace(manifest_of(), engines=(), precision="fp32")
    write_bundle(bundle.root, onnx_alone, {"model.onnx": ONNX})
    assert names_in(bundle.root) == ["manifest.json", "model.onnx"]
    assert [path.name for path in bundle.root.parent.iterdir()] == [bundle.root.name]


def test_a_replacement_that_fails_leaves_the_old_bundle(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    def full(path: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", failing)
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        written(bundle.root, content=b"vtrt, another")
    monkeypatch.undo()
    assert open_bundle(bundle.root).manifest == manifest_of()
    assert [path.name for path in bundle.root.parent.iterdir()] == [bundle.root.name]


def test_ctrl_c_in_the_middle_of_a_replacement_leaves_the_old_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, rename = written(tmp_path / "bundle"), Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        written(bundle.root, content=b"vtrt, another")
    assert open_bundle(bundle.root).manifest == manifest_of()


def test_engines_are_added_and_replaced(bundle: Bundle) -> None:
    for_orin = own(engine_entry(b"ftrt Orin", "orin.plan", runtime="tensorrt", targets=("sm87",)))
    both = with_engine(bundle, for_orin, {"orin.plan": b"ftrt Orin"}, precision="fp16")
    assert [engine.targets for engine in both.manifest.engines] == [("sm86", "sm89"), ("sm87",)]
    assert names_in(bundle.root) == ["engine.plan", "manifest.json", "model.onnx", "orin.plan"]

    newer = own(engine_entry(b"vtrt newer", targets=("sm89", "sm86")))
    replaced = with_engine(both, newer, {"engine.plan": b"vtrt newer"}, precision="fp16")
    assert [engine.file.size for engine in replaced.manifest.engines] == [len(b"ftrt Orin"), len(b"vtrt newer")]
    assert [replaced.read_engine(engine) for engine in replaced.manifest.engines] == [b"ftrt Orin", b"vtrt newer"]
    assert replaced.read_onnx() == ONNX


def test_an_engine_of_the_same_name_is_replaced_whatever_it_is_for(bundle: Bundle) -> None:
    new = own(engine_entry(b"vtrt new", targets=("sm120",)))
    (only,) = with_engine(bundle, new, {"engine.plan": b"vtrt new"}, precision="fp16").manifest.engines
    assert only == new


def test_an_onnx_is_never_replaced_by_an_engine(bundle: Bundle) -> None:
    with pytest.raises(InputError, match=r"its ONNX is called model\.onnx"):
        entry = engine_entry(b"vtrt", "model.onnx", targets=("sm120",))
        with_engine(bundle, entry, {"model.onnx": b"vtrt"}, precision="fp16")
    assert open_bundle(bundle.root).read_onnx() == ONNX


def test_nothing_is_added_to_a_damaged_bundle(tmp_path: Path) -> None:
    bundle = written(tmp_path / "bundle")
    (bundle.root / "engine.plan").write_bytes(ENGINE[:-1] + b"?")
    with pytest.raises(InputError, match=r"engine\.plan: its SHA-256 begins"):
        entry = engine_entry(b"ftrt", "new.plan", targets=("sm87",))
        with_engine(bundle, entry, {"new.plan": b"ftrt"}, precision="fp16")
    assert names_in(bundle.root) == ["engine.plan", "manifest.json", "model.onnx"]


def a_folder_of_mine(root: Path) -> None:
    root.mkdir()
    (root / "thesis.txt").write_text("years of work")


def a_file(root: Path) -> None:
    root.write_text("not a folder")


def a_bundle_with_my_file(root: Path) -> None:
    written(root)
    (root / "sub").mkdir()
    (root / "sub" / "notes.txt").write_text("mine")


def somebody_elses_manifest(root: Path) -> None:
    root.mkdir()
    (root / "manifest.json").write_text('{"name": "a web extension"}')


def a_zip_of_mine(root: Path) -> None:
    with zipfile.ZipFile(root, "w") as packed:
        packed.writestr("thesis.txt", "years of work")


def a_zip_with_my_file(root: Path) -> None:
    written(root)
    with zipfile.ZipFile(root, "a") as packed:
        packed.writestr("notes.txt", "mine")


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("out", a_folder_of_mine),
        ("out", a_file),
        ("out", a_bundle_with_my_file),
        ("out", somebody_elses_manifest),
        ("out.zip", a_folder_of_mine),
        ("out.zip", Path.mkdir),
        ("out.zip", a_file),
        ("out.zip", a_zip_of_mine),
        ("out.zip", a_zip_with_my_file),
        ("out", a_zip_of_mine),
    ],
)
def test_what_is_no_bundle_alone_is_never_replaced(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    root = tmp_path / name
    make(root)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError) as caught:
        written(root)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_empty_folder_may_become_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    check_replaceable(tmp_path / "empty")
    assert written(tmp_path / "empty").manifest == manifest_of()
