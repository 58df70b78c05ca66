"""Bundles that are damaged, forged, or for another machine: each is refused in one line, unseen by TensorRT."""

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from support.bundles import ENGINE, ONNX, engine_entry, manifest_of, own, refused, written
from unetsharp.build.bundle import open_bundle, problems_of
from unetsharp.build.manifest import parse_manifest
from unetsharp.inspection.tables import table_of
from unetsharp_engines.errors import InputError

PROGRAM = str(Path(sys.executable).with_name("unetsharp"))
Change = Callable[[Path], object]


def fields_of(root: Path) -> Any:
    return json.loads((root / "manifest.json").read_text())


def edit(*keys: Any, to: Any) -> Change:
    """A change of one field of the manifest."""

    def change(root: Path) -> None:
        fields = fields_of(root)
        inner = fields
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = to
        (root / "manifest.json").write_text(json.dumps(fields))

    return change


def drop(*keys: Any) -> Change:
    def change(root: Path) -> None:
        fields = fields_of(root)
        inner = fields
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        (root / "manifest.json").write_text(json.dumps(fields))

    return change


def put(content: bytes, name: str = "manifest.json") -> Change:
    return lambda root: (root / name).write_bytes(content)


def replace(old: str, new: str) -> Change:
    """A change of the manifest's text."""

    def change(root: Path) -> None:
        text = (root / "manifest.json").read_text()
        assert text.count(old) >= 1
        (root / "manifest.json").write_text(text.replace(old, new, 1))

    return change


def truncate(name: str) -> Change:
    return lambda root: os.truncate(root / name, (root / name).stat().st_size // 2)


def remove(name: str) -> Change:
    return lambda root: (root / name).unlink()


def flip(name: str) -> Change:
    def change(root: Path) -> None:
        content = bytearray((root / name).read_bytes())
        content[len(content) // 2] ^= 1
        (root / name).write_bytes(bytes(content))

    return change


def link(name: str) -> Change:
    """Replace a file by a link to the same bytes outside of the bundle."""

    def change(root: Path) -> None:
        outside = root.parent / f"outside-{name}"
        (root / name).rename(outside)
        (root / name).symlink_to(outside)

    return change


def swap_engine(root: Path) -> None:
    (root / "engine.plan").write_bytes(ENGINE[:4] + ENGINE[4:][::-1])


def engine_for_tensorrt(root: Path) -> None:
    """A sound bundle of one's own, whose engine begins as TensorRT's do, not as TensorRT-RTX's."""
    content = b"ftrt" + ENGINE[4:]
    written(root, own(engine_entry(content)), content=content)


def engine_twice(root: Path) -> None:
    fields = fields_of(root)
    fields["engines"] *= 2
    (root / "manifest.json").write_text(json.dumps(fields))


def engine_twice_in_two_files(root: Path) -> None:
    written(root)
    fields = fields_of(root)
    (root / "copy.plan").write_bytes(ENGINE)
    copy = json.loads(json.dumps(fields["engines"][0]))
    copy["file"]["path"] = "copy.plan"
    fields["engines"].append(copy)
    (root / "manifest.json").write_text(json.dumps(fields))


def listed(path: str) -> dict[str, Any]:
    return {"path": path, "sha256": "0" * 64, "size": 1}


ENGINE_PATH = ("engines", 0, "file", "path")

BROKEN: dict[str, tuple[Change, str]] = {
    # files
    "engine missing": (remove("engine.plan"), "missing"),
    "ONNX missing": (remove("model.onnx"), "missing"),
    "manifest missing": (remove("manifest.json"), "a folder without manifest.json, so no bundle"),
    "engine truncated": (truncate("engine.plan"), "the manifest says"),
    "engine empty": (put(b"", "engine.plan"), "0 bytes, the manifest says"),
    "engine longer": (put(ENGINE + b"\0", "engine.plan"), "the manifest says"),
    "engine another": (swap_engine, "its SHA-256 begins"),
    "engine with a flipped bit": (flip("engine.plan"), "its SHA-256 begins"),
    "ONNX truncated": (truncate("model.onnx"), "the manifest says"),
    "engine a folder": (lambda root: (remove("engine.plan")(root), (root / "engine.plan").mkdir()), "missing"),
    "engine a pipe": (lambda root: (remove("engine.plan")(root), os.mkfifo(root / "engine.plan")), "missing"),
    "engine a link out": (link("engine.plan"), "leads out of the bundle"),
    "ONNX a link out": (link("model.onnx"), "leads out of the bundle"),
    "manifest a link out": (link("manifest.json"), "leads out of the bundle"),
    "engine a link to nothing": (
        lambda root: (remove("engine.plan")(root), (root / "engine.plan").symlink_to("nothing")),
        "missing",
    ),
    "engine of another runtime": (engine_for_tensorrt, "an engine for tensorrt, the manifest says tensorrt-rtx"),
    # the manifest's text
    "manifest truncated": (truncate("manifest.json"), "not a bundle's manifest"),
    "manifest empty": (put(b""), "not a bundle's manifest"),
    "manifest of bytes": (put(bytes(range(256))), "not a bundle's manifest"),
    "manifest in UTF-16": (put("{}".encode("utf-16")), "not a bundle's manifest"),
    "manifest with a byte order mark": (put(b"\xef\xbb\xbf{}"), "BOM"),
    "manifest in Latin-1": (put('{"name": "é"}'.encode("latin-1")), "not a bundle's manifest"),
    "manifest a list": (put(b"[1, 2]"), "no JSON object"),
    "manifest a number": (put(b"1"), "no JSON object"),
    "manifest null": (put(b"null"), "no JSON object"),
    "manifest nested without end": (put(b"[" * 200_000), "not a bundle's manifest"),
    "objects nested without end": (put(b'{"a":' * 100_000), "not a bundle's manifest"),
    "manifest too long": (put(b" " * (1 << 20) + b"{}"), "bytes long"),
    "manifest of 10 GB": (lambda root: os.truncate(root / "manifest.json", 10**10), "10000000000 bytes long"),
    "a key twice": (replace('"precision":', '"precision": "int8", "precision":'), "'precision' is given twice"),
    "an inner key twice": (replace('"size":', '"size": 1, "size":'), "'size' is given twice"),
    "not a number": (replace('"seconds": 1.5', '"seconds": NaN'), "NaN is no number"),
    "an infinite number": (replace('"seconds": 1.5', '"seconds": 1e999'), "too large a number"),
    "negative infinity": (replace('"seconds": 1.5', '"seconds": -Infinity'), "is no number"),
    "a number of 10,000 digits": (replace('"size": 502', '"size": ' + "9" * 10_000), "too large a number"),
    "a line end in a text": (edit("tool_version", to="1\nSUCCESS"), "no printable text"),
    "a terminal command in a text": (edit("info", "name", to="\x1b[2Jevil"), "no printable text"),
    "half a character": (edit("info", "name", to="\ud800"), "no printable text"),
    "text turned around": (edit("info", "name", to="‮lanalp.enigne"), "no printable text"),
    # what TensorRT said of an engine's layers
    "layers a text": (edit("engines", 0, "inspected", to="l.json"), "an engine's inspected layers is no object"),
    "layers without a hash": (edit("engines", 0, "inspected", to={"path": "l.json", "size": 1}), "lacks 'sha256'"),
    "layers missing": (edit("engines", 0, "inspected", to=listed("l.json")), "l.json: missing from the bundle"),
    "layers outside": (edit("engines", 0, "inspected", to=listed("../l.json")), "leaves the bundle"),
    "layers in the engine": (edit("engines", 0, "inspected", to=listed("engine.plan")), "a file is listed twice"),
    # schema and contract
    "schema of the future": (edit("schema", to=4), "schema 4, this version of unetsharp reads 2 and 3"),
    "schema of the past": (edit("schema", to=1), "schema 1, this version of unetsharp reads 2 and 3"),
    "schema missing": (drop("schema"), "lacks 'schema'"),
    "schema a text": (edit("schema", to="2"), "schema '2'"),
    "schema a decimal": (edit("schema", to=3.0), "schema 3.0"),
    "schema true": (edit("schema", to=True), "schema True"),
    "schema a long text": (edit("schema", to="2" * 100_000), "schema '2222"),
    "other input scaling": (
        edit("contract", "bytes_to_unit", to=1.0),
        "made with contract {'bytes_to_unit': 1.0}, this version",
    ),
    "other labels": (edit("contract", "labels", to={}), "made with contract {'labels': {}}"),
    "contract missing": (drop("contract"), "lacks 'contract'"),
    "contract a text": (edit("contract", to="mine"), "made with contract mine"),
    "other stain target": (
        edit("stain_target", "white", to=255.0),
        "made with stain target {'white': 255.0}, this version of unetsharp has {'white': 240.0}",
    ),
    "other classes": (edit("info", "classes", to=["Cat", "Dog"]), "its classes are"),
    # paths
    "absolute path": (edit(*ENGINE_PATH, to="/etc/passwd"), "leaves the bundle"),
    "parent path": (edit(*ENGINE_PATH, to="../engine.plan"), "leaves the bundle"),
    "hidden parent path": (edit(*ENGINE_PATH, to="a/../../engine.plan"), "leaves the bundle"),
    "parent path of the ONNX": (edit("onnx", "path", to="../../model.onnx"), "leaves the bundle"),
    "Windows path": (edit(*ENGINE_PATH, to="C:\\engine.plan"), "leaves the bundle"),
    "Windows share": (edit(*ENGINE_PATH, to="\\\\host\\engine.plan"), "leaves the bundle"),
    "home path": (edit(*ENGINE_PATH, to="~/engine.plan"), "missing"),
    "empty path": (edit(*ENGINE_PATH, to=""), "leaves the bundle"),
    "path with a null": (edit(*ENGINE_PATH, to="a\0b"), "no printable text"),
    "path a number": (edit(*ENGINE_PATH, to=7), "leaves the bundle"),
    "path a list": (edit(*ENGINE_PATH, to=["engine.plan"]), "leaves the bundle"),
    "path the bundle": (edit(*ENGINE_PATH, to="."), "leaves the bundle"),
    "path of 100,000 characters": (edit(*ENGINE_PATH, to="a" * 100_000), "path of 100000 characters"),
    "path in two ways": (edit(*ENGINE_PATH, to="./model.onnx"), "not written plainly"),
    "engine is the ONNX": (edit(*ENGINE_PATH, to="model.onnx"), "listed twice"),
    "engine is the manifest": (edit(*ENGINE_PATH, to="manifest.json"), "the manifest's own"),
    "engine listed twice": (engine_twice, "listed twice"),
    "engine twice in two files": (engine_twice_in_two_files, "two engines for the same GPUs"),
    # sizes and hashes
    "size of 10 GB": (edit("onnx", "size", to=10**10), "the manifest says 10000000000"),
    "size negative": (edit("onnx", "size", to=-1), "no number of bytes"),
    "size a text": (edit("onnx", "size", to="502"), "no number of bytes"),
    "size true": (edit("onnx", "size", to=True), "no number of bytes"),
    "size a decimal": (edit("onnx", "size", to=502.0), "no number of bytes"),
    "hash too short": (edit("onnx", "sha256", to="abc"), "64 hex digits"),
    "hash in capitals": (edit("onnx", "sha256", to="A" * 64), "64 hex digits"),
    "hash a number": (edit("onnx", "sha256", to=1), "64 hex digits"),
    "hash missing": (drop("onnx", "sha256"), "onnx lacks 'sha256'"),
    # the manifest's fields
    "no ONNX": (drop("onnx"), "lacks 'onnx'"),
    "ONNX a text": (edit("onnx", to="model.onnx"), "onnx is no object"),
    "no engines field": (drop("engines"), "lacks 'engines'"),
    "engines a number": (edit("engines", to=5), "engines is no list"),
    "engines a text": (edit("engines", to="engine.plan"), "engines is no list"),
    "engine a text": (edit("engines", 0, to="engine.plan"), "an engine is no object"),
    "engine null": (edit("engines", 0, to=None), "an engine is no object"),
    "unknown field": (edit("run_this", to="rm"), "unknown field 'run_this'"),
    "unknown engine field": (edit("engines", 0, "plugin", to="evil.so"), "unknown field 'plugin'"),
    "unknown file field": (edit("onnx", "url", to="http://"), "onnx has an unknown field 'url'"),
    "unknown precision": (edit("precision", to="fp4"), "precision 'fp4'"),
    "precision a number": (edit("precision", to=16), "precision 16"),
    "created a number": (edit("created", to=2026), "not a bundle's manifest"),
    "created no date": (edit("created", to="yesterday"), "yesterday"),
    "version of the tool a number": (edit("tool_version", to=1), "tool_version 1"),
    "layers a list": (edit("layers", to=["int8"]), "layers ['int8']"),
    "layers of unknown precision": (edit("layers", to={"conv": "int3"}), "unknown precision"),
    "quantization a text": (edit("quantization", to="good"), "quantization is no object"),
    "no network": (drop("info"), "lacks 'info'"),
    "network a list": (edit("info", to=[]), "info is no object"),
    "network's name a number": (edit("info", "name", to=5), "name"),
    "network's tile a text": (edit("info", "tile", to="64"), "tile"),
    "network's tile negative": (edit("info", "tile", to=-64), "tile"),
    "network's resolution zero": (edit("info", "mpp", to=0), "mpp"),
    "network's stain unknown": (edit("info", "stain", to="vahadane"), "stain"),
    # the engine's fields
    "unknown runtime": (edit("engines", 0, "runtime", to="openvino"), "runtime 'openvino'"),
    "version empty": (edit("engines", 0, "version", to=""), "version ''"),
    "version a number": (edit("engines", 0, "version", to=10.3), "version 10.3"),
    "CUDA a list": (edit("engines", 0, "cuda", to=[13]), "cuda [13]"),
    "platform odd": (edit("engines", 0, "platform", to="linux"), "platform 'linux'"),
    "no targets": (edit("engines", 0, "targets", to=[]), "without targets"),
    "targets a text": (edit("engines", 0, "targets", to="sm86"), "targets 'sm86'"),
    "target odd": (edit("engines", 0, "targets", to=["gfx90a"]), "targets ('gfx90a',)"),
    "target twice": (edit("engines", 0, "targets", to=["sm86", "sm86"]), "repeat"),
    "no profile": (drop("engines", 0, "profile"), "lacks 'profile'"),
    "profile of one shape": (edit("engines", 0, "profile", to={"min": [1, 3, 64, 64]}), "lacks 'opt'"),
    "profile of texts": (edit("engines", 0, "profile", "opt", to="1x3x64x64"), "profile"),
    "profile of zeros": (edit("engines", 0, "profile", "max", to=[0, 3, 64, 64]), "profile"),
    "profile upside down": (edit("engines", 0, "profile", "min", to=[9, 3, 64, 64]), "profile"),
    "profile of four colours": (edit("engines", 0, "profile", "min", to=[1, 4, 64, 64]), "profile"),
    "profile with more": (edit("engines", 0, "profile", "more", to=[1, 3, 64, 64]), "profile"),
    "options a list": (edit("engines", 0, "options", to=[3]), "options [3]"),
    "seconds negative": (edit("engines", 0, "seconds", to=-1), "seconds -1"),
    "seconds a text": (edit("engines", 0, "seconds", to="1"), "seconds '1'"),
    "GPU a number": (edit("engines", 0, "gpu", to=90), "gpu 90"),
    "compatible a text": (edit("engines", 0, "version_compatible", to="yes"), "version_compatible 'yes'"),
    "layers of an engine a text": (edit("engines", 0, "layers", to="all"), "layers 'all'"),
    "layers of an engine of unknown precision": (edit("engines", 0, "layers", to={"a": "fp8"}), "unknown precision"),
    "signature odd": (edit("engines", 0, "signature", to="trust me"), "signature 'trust me'"),
    # forged so that it would fit
    "signature of nobody": (edit("engines", 0, "signature", to="0" * 64), "not built by you here"),
    "signature missing": (edit("engines", 0, "signature", to=""), "not built by you here"),
    "target added": (edit("engines", 0, "targets", to=["sm86", "sm89", "sm90"]), "not built by you here"),
    # for another machine
    "for another GPU": (edit("engines", 0, "targets", to=["sm90"]), "runs on sm90 only"),
    "by another version": (edit("engines", 0, "version", to="1.5.0.1"), "built by TensorRT-RTX 1.5.0.1"),
    "by another library": (edit("engines", 0, "runtime", to="tensorrt"), "holds engines for tensorrt, none for"),
    "on another platform": (edit("engines", 0, "platform", to="windows-amd64"), "was built on windows-amd64"),
    "without engines": (edit("engines", to=[]), "holds engines for no runtime"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_bundles_are_refused_in_one_line(tmp_path: Path, what: str) -> None:
    change, says = BROKEN[what]
    root = written(tmp_path / "bundle").root
    change(root)
    refused(root, says)


@pytest.mark.parametrize("name", ["auto", "tensorrt-rtx"])
def test_a_damaged_engine_is_never_passed_over(tmp_path: Path, name: str) -> None:
    root = written(tmp_path / "bundle").root
    flip("engine.plan")(root)
    refused(root, "its SHA-256 begins", name)


def test_a_damaged_onnx_is_refused_where_it_would_run(tmp_path: Path) -> None:
    root = written(tmp_path / "bundle").root
    flip("model.onnx")(root)
    refused(root, "model.onnx: its SHA-256 begins", "onnxruntime")


def test_an_engine_belongs_to_its_onnx(tmp_path: Path) -> None:
    """The ONNX replaced by another, hash and all: the engine's signature fits no more."""
    root = written(tmp_path / "bundle").root
    other = ONNX[::-1]
    (root / "model.onnx").write_bytes(other)
    edit("onnx", "sha256", to=hashlib.sha256(other).hexdigest())(root)
    refused(root, "not built by you here")


def test_a_flipped_bit_is_among_the_problems(tmp_path: Path) -> None:
    bundle = written(tmp_path / "bundle")
    flip("model.onnx")(bundle.root)
    (problem,) = problems_of(open_bundle(bundle.root))
    assert "model.onnx: its SHA-256 begins" in problem


@pytest.mark.parametrize("at", [0, 3, 4, 100, len(ENGINE) - 1])
@pytest.mark.parametrize("bit", [0, 7])
def test_every_bit_of_an_engine_counts(tmp_path: Path, at: int, bit: int) -> None:
    root = written(tmp_path / "bundle").root
    content = bytearray(ENGINE)
    content[at] ^= 1 << bit
    (root / "engine.plan").write_bytes(bytes(content))
    refused(root, "its SHA-256 begins")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser reads everything")
def test_a_file_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    root = written(tmp_path / "bundle").root
    (root / "model.onnx").chmod(0)
    refused(root, "cannot be read (Permission denied)")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(value=JSON, data=st.data())
@settings(max_examples=150, deadline=None)
def test_no_value_in_a_manifest_gets_past_input_error(value: Any, data: st.DataObject) -> None:
    """Any field, replaced by anything: the manifest is read and can be shown, or it is refused as a mistake."""
    fields = json.loads(json.dumps(manifest_of().to_dict()))
    places = [(fields, key) for key in fields]
    places += [(inner, key) for inner in (fields["onnx"], fields["info"], fields["engines"][0]) for key in inner]
    holder, key = data.draw(st.sampled_from(places))
    holder[key] = value
    try:
        manifest = parse_manifest(json.dumps(fields).encode(), "odd.json")
    except InputError as error:
        assert "\n" not in str(error)
    else:
        engines = [{"trusted": True, "here": []} for _ in manifest.engines]
        facts = {"kind": "bundle", "path": "odd", "manifest": manifest.to_dict(), "problems": [], "engines": engines}
        Console(file=io.StringIO()).print(table_of({**facts, "runs_on": ["onnxruntime"]}))


@pytest.mark.parametrize("what", ["engine truncated", "absolute path", "schema of the future", "manifest of bytes"])
@pytest.mark.parametrize("command", ["inspect", "infer"])
def test_the_commands_say_so_in_one_line(tmp_path: Path, what: str, command: str) -> None:
    change, says = BROKEN[what]
    root = written(tmp_path / "bundle").root
    change(root)
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"never read")
    arguments = ["inspect", root] if command == "inspect" else ["infer", picture, "-m", root, "-o", tmp_path / "out"]
    done = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("error: ")
    assert says in done.stderr
