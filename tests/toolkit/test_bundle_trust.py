"""Who built an engine: what this user built runs, what others built runs with --trust alone."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.bundles import ENGINE, ONNX, QUIET, RecordingTensorRt, engine_entry, manifest_of, own, written
from support.user_folders import keep_in
from unetsharp.build.bundle import open_bundle, with_engine
from unetsharp.build.manifest import EngineEntry
from unetsharp.build.pipeline import BuildOptions, build_bundle
from unetsharp.build.trust import check_key, is_own, key_path, signed
from unetsharp.diagnosis import diagnose
from unetsharp_engines.cuda.compiling import cache_folder
from unetsharp_engines.errors import InputError

POSIX = pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")


@pytest.fixture(autouse=True)
def somebody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a key."""
    keep_in(tmp_path / "config", monkeypatch)


def become_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keep_in(tmp_path / "another", monkeypatch)


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_these_tests_keep_off_the_users_own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setattr(sys, "platform", system)
    keep_in(tmp_path, monkeypatch)
    assert key_path().is_relative_to(tmp_path)
    assert cache_folder().is_relative_to(tmp_path)


def test_what_was_built_here_is_loaded(tmp_path: Path) -> None:
    trt = RecordingTensorRt()
    trt.load(written(tmp_path / "bundle").root)
    assert trt.seen == [ENGINE]


@pytest.mark.parametrize("has_key", [False, True])
def test_what_another_built_wants_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_key: bool) -> None:
    root = written(tmp_path / "bundle").root
    become_another(monkeypatch, tmp_path)
    if has_key:
        own(engine_entry())
    trt = RecordingTensorRt()
    with pytest.raises(InputError, match=r"engine\.plan: an engine is code, .* --trust runs it .* --rebuild") as caught:
        trt.load(root)
    assert trt.seen == []
    assert "\n" not in str(caught.value)
    trt.load(root, trust=True)
    assert trt.seen == [ENGINE]


def test_the_onnx_of_another_needs_no_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = written(tmp_path / "bundle").root
    become_another(monkeypatch, tmp_path)
    assert open_bundle(root).read_onnx() == ONNX


def test_adding_an_engine_of_ones_own_does_not_make_the_others_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "bundle")
    become_another(monkeypatch, tmp_path)
    mine = own(engine_entry(b"vtrt mine", "mine.plan", targets=("sm75",)))
    bundle = with_engine(open_bundle(tmp_path / "bundle"), mine, {"mine.plan": b"vtrt mine"}, precision="fp16")
    assert [bundle.is_trusted(engine) for engine in bundle.manifest.engines] == [False, True]


CHANGES: dict[str, Any] = {
    "file": engine_entry(b"vtrt evil").file,
    "runtime": "tensorrt",
    "version": "1.8.0.1",
    "cuda": None,
    "targets": ("sm90",),
    "platform": "linux-aarch64",
    "profile": dict.fromkeys(("min", "opt", "max"), (1, 3, 64, 64)),
    "options": {"level": 3},
    "seconds": 2.0,
    "gpu": "RTX 3090",
    "version_compatible": True,
    "ampere_plus": True,
    "layers": {"head": "fp32"},
    "inspected": engine_entry(b"vtrt evil").file,
    "signature": "0" * 64,
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(EngineEntry)])
def test_a_signature_covers_every_field(name: str) -> None:
    sha256 = "5" * 64
    engine = signed(engine_entry(), sha256, QUIET)
    assert is_own(engine, sha256)
    assert not is_own(dataclasses.replace(engine, **{name: CHANGES[name]}), sha256)


def test_a_signature_is_for_one_onnx_and_cannot_be_left_out() -> None:
    engine = own(engine_entry())
    sha256 = manifest_of().onnx.sha256
    assert is_own(engine, sha256)
    assert not is_own(engine, "6" * 64)
    assert not is_own(dataclasses.replace(engine, signature=""), sha256)


@POSIX
def test_the_key_is_its_users_alone() -> None:
    own(engine_entry())
    assert key_path().stat().st_mode & 0o777 == 0o600
    key_path().chmod(0o640)
    with pytest.raises(InputError, match="others than you can read this key"):
        is_own(engine_entry(), "5" * 64)


@pytest.mark.parametrize(("text", "says"), [("", "a key of 0 bytes"), ("ab" * 31, "31 bytes"), ("no hex", "no key")])
def test_a_key_file_without_a_key_is_refused(text: str, says: str) -> None:
    own(engine_entry())
    key_path().write_text(text)
    for use in (lambda: own(engine_entry()), lambda: is_own(engine_entry(), "5" * 64)):
        with pytest.raises(InputError, match=says):
            use()


def test_a_key_that_will_not_do_is_told_before_the_build(tmp_path: Path) -> None:
    own(engine_entry())
    key_path().write_text("no hex")
    with pytest.raises(InputError, match="no key"):
        build_bundle(tmp_path / "never read.onnx", tmp_path / "b", BuildOptions(), QUIET)


@pytest.mark.parametrize(("system", "remedy"), [("linux", "set XDG_CONFIG_HOME"), ("darwin", "must be a folder that")])
def test_where_no_key_can_be_kept_the_user_is_told_and_the_engine_is_foreign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], system: str, remedy: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    keep_in(tmp_path / "config", monkeypatch)
    (tmp_path / "config").write_text("a file where the folder should be")
    engine = own(engine_entry())
    assert engine.signature == ""
    said = capsys.readouterr().err
    assert "will count as foreign" in said
    assert remedy in said
    assert not open_bundle(written(tmp_path / "bundle", engine).root).is_trusted(engine)


def test_a_key_out_of_reach_is_no_key(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A name too long fails where a missing one does not, as a folder does that may not be entered."""
    keep_in(Path("/" + "long" * 100), monkeypatch)
    check_key()
    assert not is_own(engine_entry(), "5" * 64)
    assert diagnose(load_torch=False)["machine"]["engine_key"] is None
    assert own(engine_entry()).signature == ""
    assert "no key can be kept there" in capsys.readouterr().err


def test_machines_that_share_a_key_trust_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = written(tmp_path / "bundle").root
    key = key_path().read_text()
    become_another(monkeypatch, tmp_path)
    key_path().parent.mkdir(parents=True)
    key_path().write_text(key)
    key_path().chmod(0o600)
    bundle = open_bundle(root)
    assert bundle.is_trusted(bundle.manifest.engines[0])


def test_builds_at_the_same_time_make_one_key() -> None:
    code = "from support.bundles import *; print(own(engine_entry()).signature)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    builds = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(4)
    ]
    assert len({build.communicate(timeout=60)[0] for build in builds}) == 1
    assert [build.returncode for build in builds] == [0] * 4
    assert [path.name for path in key_path().parent.iterdir()] == ["engine-key"]
