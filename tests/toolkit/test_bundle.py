"""Bundles: written whole, replaced whole, and refused in one line when anything in them does not fit."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from support.tiny_onnx import INFO
from unetsharp.build.bundle import Bundle, check_replaceable, file_entry, open_bundle, problems_of, write_bundle
from unetsharp.build.manifest import EngineEntry, Manifest, read_manifest
from unetsharp.inspection.tables import table_of
from unetsharp_engines.errors import InputError

ENGINE, ONNX = b"vtrt" + bytes(range(256)) * 8, b"\x08\x09" + b"model" * 100


def manifest_of(engine: bytes = ENGINE) -> Manifest:
    entry = EngineEntry(
        file=file_entry("engine.plan", engine),
        runtime="tensorrt-rtx",
        version="1.7.1.116",
        cuda="13",
        targets=("sm86", "sm89"),
        platform="linux-x86_64",
        profile={"min": (1, 3, 64, 64), "opt": (4, 3, 64, 64), "max": (8, 3, 64, 64)},
        options={},
        seconds=1.5,
    )
    return Manifest(
        created="2026-01-02T03:04:05+00:00",
        tool_version="0.1.0",
        info=INFO,
        precision="fp16",
        onnx=file_entry("model.onnx", ONNX),
        engines=(entry,),
    )


def written(root: Path, engine: bytes = ENGINE) -> Bundle:
    return write_bundle(root, manifest_of(engine), {"model.onnx": ONNX, "engine.plan": engine})


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return written(tmp_path / "bundle")


def test_what_was_written_is_read(bundle: Bundle) -> None:
    again = open_bundle(bundle.root)
    assert again.manifest == manifest_of()
    assert again.read_onnx() == ONNX
    assert again.read_engine(again.manifest.engines[0]) == ENGINE
    assert problems_of(again) == []


def test_a_bundle_is_replaced_whole_and_nothing_is_left_beside_it(bundle: Bundle) -> None:
    onnx_alone = Manifest(**{**vars(manifest_of()), "engines": (), "precision": "fp32"})
    write_bundle(bundle.root, onnx_alone, {"model.onnx": ONNX})
    assert sorted(path.name for path in bundle.root.iterdir()) == ["manifest.json", "model.onnx"]
    assert [path.name for path in bundle.root.parent.iterdir()] == ["bundle"]


def test_a_replacement_that_fails_leaves_the_old_bundle(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        written(bundle.root, engine=b"vtrt, another")
    assert open_bundle(bundle.root).manifest == manifest_of()
    assert [path.name for path in bundle.root.parent.iterdir()] == ["bundle"]


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


@pytest.mark.parametrize("make", [a_folder_of_mine, a_file, a_bundle_with_my_file, somebody_elses_manifest])
def test_what_is_no_bundle_alone_is_never_replaced(tmp_path: Path, make: Callable[[Path], None]) -> None:
    root = tmp_path / "out"
    make(root)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError):
        written(root)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_empty_folder_may_become_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    check_replaceable(tmp_path / "empty")
    assert written(tmp_path / "empty").manifest == manifest_of()


def flip(root: Path, name: str) -> None:
    content = bytearray((root / name).read_bytes())
    content[len(content) // 2] ^= 1
    (root / name).write_bytes(bytes(content))


@pytest.mark.parametrize(("name", "read"), [("engine.plan", "read_engine"), ("model.onnx", "read_onnx")])
def test_a_flipped_bit_is_found_before_the_bytes_are_used(bundle: Bundle, name: str, read: str) -> None:
    flip(bundle.root, name)
    opened = open_bundle(bundle.root)
    arguments = opened.manifest.engines if read == "read_engine" else ()
    with pytest.raises(InputError, match=f"{name}: its SHA-256 begins .* unetsharp build-engine"):
        getattr(opened, read)(*arguments)
    (problem,) = problems_of(opened)
    assert name in problem


def edit(*keys: Any, to: Any) -> Callable[[Path], None]:
    """A change of one field of the manifest."""

    def change(root: Path) -> None:
        fields = json.loads((root / "manifest.json").read_text())
        inner = fields
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = to
        (root / "manifest.json").write_text(json.dumps(fields))

    return change


def drop(*keys: Any) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        fields = json.loads((root / "manifest.json").read_text())
        inner = fields
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        (root / "manifest.json").write_text(json.dumps(fields))

    return change


def put(content: bytes) -> Callable[[Path], object]:
    return lambda root: (root / "manifest.json").write_bytes(content)


def truncate(name: str) -> Callable[[Path], None]:
    return lambda root: os.truncate(root / name, (root / name).stat().st_size // 2)


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def link_outside(root: Path) -> None:
    outside = root.parent / "outside.plan"
    outside.write_bytes(ENGINE)
    (root / "engine.plan").unlink()
    (root / "engine.plan").symlink_to(outside)


ENGINE_PATH = ("engines", 0, "file", "path")

BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "engine missing": (remove("engine.plan"), "missing"),
    "ONNX missing": (remove("model.onnx"), "missing"),
    "manifest missing": (remove("manifest.json"), "no bundle"),
    "engine truncated": (truncate("engine.plan"), "the manifest says"),
    "ONNX truncated": (truncate("model.onnx"), "the manifest says"),
    "manifest truncated": (truncate("manifest.json"), "not a bundle's manifest"),
    "manifest empty": (put(b""), "not a bundle's manifest"),
    "manifest of bytes": (put(bytes(range(256))), "not a bundle's manifest"),
    "manifest a list": (put(b"[1, 2]"), "no JSON object"),
    "manifest nested without end": (put(b"[" * 200_000), "not a bundle's manifest"),
    "manifest too long": (put(b" " * (1 << 20) + b"{}"), "bytes long"),
    "schema of the future": (edit("schema", to=2), "schema 2; this version reads 1"),
    "schema missing": (drop("schema"), "schema"),
    "schema a text": (edit("schema", to="1"), "schema '1'"),
    "absolute path": (edit(*ENGINE_PATH, to="/etc/passwd"), "leaves the bundle"),
    "parent path": (edit(*ENGINE_PATH, to="../engine.plan"), "leaves the bundle"),
    "hidden parent path": (edit(*ENGINE_PATH, to="a/../../engine.plan"), "leaves the bundle"),
    "Windows path": (edit(*ENGINE_PATH, to="C:\\engine.plan"), "leaves the bundle"),
    "empty path": (edit(*ENGINE_PATH, to=""), "leaves the bundle"),
    "path with a null": (edit(*ENGINE_PATH, to="a\0b"), "leaves the bundle"),
    "path a number": (edit(*ENGINE_PATH, to=7), "leaves the bundle"),
    "path a folder": (edit(*ENGINE_PATH, to="."), "leaves the bundle"),
    "engine is the ONNX": (edit(*ENGINE_PATH, to="model.onnx"), "listed twice"),
    "link out of the bundle": (link_outside, "leads out of the bundle"),
    "size of 10 GB": (edit("onnx", "size", to=10**10), "the manifest says 10000000000"),
    "size negative": (edit("onnx", "size", to=-1), "no number of bytes"),
    "size a text": (edit("onnx", "size", to="502"), "no number of bytes"),
    "hash too short": (edit("onnx", "sha256", to="abc"), "64 hex digits"),
    "hash a number": (edit("onnx", "sha256", to=1), "not a bundle's manifest"),
    "hash missing": (drop("onnx", "sha256"), "not a bundle's manifest"),
    "no ONNX": (drop("onnx"), "lacks 'onnx'"),
    "ONNX a text": (edit("onnx", to="model.onnx"), "not a bundle's manifest"),
    "engines a number": (edit("engines", to=5), "not a bundle's manifest"),
    "engine a text": (edit("engines", 0, to="engine.plan"), "not a bundle's manifest"),
    "no targets": (edit("engines", 0, "targets", to=[]), "without targets"),
    "targets a text": (edit("engines", 0, "targets", to="sm86"), "targets"),
    "no profile": (drop("engines", 0, "profile"), "lacks 'profile'"),
    "profile of one shape": (edit("engines", 0, "profile", to={"min": [1, 3, 64, 64]}), "not a bundle's manifest"),
    "profile of texts": (edit("engines", 0, "profile", "opt", to="1x3x64x64"), "profile"),
    "profile of zeros": (edit("engines", 0, "profile", "max", to=[0, 3, 64, 64]), "profile"),
    "unknown field": (edit("run_this", to="rm"), "run_this"),
    "unknown engine field": (edit("engines", 0, "plugin", to="evil.so"), "plugin"),
    "no network": (drop("info"), "lacks 'info'"),
    "other classes": (edit("info", "classes", to=["Cat", "Dog"]), "its classes are"),
    "network a list": (edit("info", to=[]), "metadata"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_bundles_are_refused_in_one_line(bundle: Bundle, what: str) -> None:
    change, says = BROKEN[what]
    change(bundle.root)
    with pytest.raises(InputError) as caught:
        open_bundle(bundle.root)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(bundle.root) in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(value=JSON, data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_value_in_a_manifest_gets_past_input_error(bundle: Bundle, value: Any, data: st.DataObject) -> None:
    """Any field, replaced by anything: the manifest is read, or refused as a mistake; nothing else is raised."""
    fields = json.loads(json.dumps(manifest_of().to_dict()))
    places = [(fields, key) for key in fields]
    places += [(inner, key) for inner in (fields["onnx"], fields["info"], fields["engines"][0]) for key in inner]
    holder, key = data.draw(st.sampled_from(places))
    holder[key] = value
    path = bundle.root / "odd.json"
    path.write_text(json.dumps(fields))
    try:
        manifest = read_manifest(path)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        facts = {"kind": "bundle", "path": "odd", "manifest": manifest.to_dict(), "problems": []}
        Console(file=io.StringIO()).print(table_of(facts))
