"""unetsharp doctor: what works here, what is missing, and how to get it."""
# ruff: noqa: N802 - the CUDA driver's functions have their own names

import importlib.metadata
import importlib.util
import io
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from rich.console import Console
from typer.main import get_group

from support.bundles import engine_entry, own
from support.user_folders import keep_in
from unetsharp import machine
from unetsharp.build.trust import key_path
from unetsharp.cli.app import app
from unetsharp.diagnosis import abilities, diagnose
from unetsharp.diagnosis.packages import installed
from unetsharp.diagnosis.tables import tables_of

PROGRAM = str(Path(sys.executable).with_name("unetsharp"))


def shown(facts: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(tables_of(facts))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def without(*names: str) -> Any:
    """`importlib.metadata.version` on a machine that lacks the packages ``names``."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    return version


def test_the_command_ends_with_0_and_speaks_json() -> None:
    done = subprocess.run([PROGRAM, "doctor", "--json"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert facts["machine"]["python"] == platform.python_version()
    assert facts["machine"]["cores"] >= 1
    assert facts["machine"]["memory_bytes"] > 1 << 28
    versions = {entry["package"]: entry["version"] for entry in facts["packages"]}
    assert versions["onnxruntime"] == importlib.metadata.version("onnxruntime")


def test_it_does_not_load_torch_unless_asked() -> None:
    code = "import sys; from unetsharp.diagnosis import diagnose; diagnose(load_torch=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout.split()


def test_the_commands_it_knows_exist() -> None:
    documented = set(get_group(app).commands)
    listed = {str(entry["command"]) for entry in abilities.what_works()}
    assert listed <= documented


def test_what_an_extra_lacks_is_read_from_the_packages_own_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [Requirement(text) for text in importlib.metadata.requires("unetsharp") or []]
    adabound = next(r for r in wanted if r.name == "adabound")
    monkeypatch.setattr(importlib.metadata, "version", without("adabound", "onnx"))
    assert f"adabound{adabound.specifier}" in abilities.missing("train")
    assert any(name.startswith("onnx>") for name in abilities.missing("")), "the plain install counts always"
    assert not any(name.startswith("adabound") for name in abilities.missing("export"))


def test_a_version_too_old_counts_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.0.1")
    assert any(name.startswith("numpy>=") for name in abilities.missing(""))


def test_for_what_is_missing_it_shows_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", without("adabound", "tensorrt_rtx_cu13", "tensorrt-rtx-cu13"))
    monkeypatch.setattr(machine, "gpus", lambda: ())
    by_use = {(e["command"], e["does"]): e for e in abilities.what_works()}
    train = next(entry for (command, _), entry in by_use.items() if command == "train")
    assert (train["works"], train["get"]) == (False, "pip install 'unetsharp[train]'")
    assert next(entry for (command, _), entry in by_use.items() if command == "inspect")["works"]


@pytest.mark.parametrize(("installed", "gpu"), [(False, False), (False, True), (True, False), (True, True)])
def test_tensorrt_wants_its_library_and_a_gpu(monkeypatch: pytest.MonkeyPatch, installed: bool, gpu: bool) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(machine, "gpus", lambda: ("a GPU",) if gpu else ())
    entry = next(e for e in abilities.what_works() if "for TensorRT, on" in str(e["does"]))
    lacks = [*([] if gpu else ["an NVIDIA GPU with its driver"]), *([] if installed else ["TensorRT"])]
    assert (entry["works"], entry["missing"]) == (not lacks, lacks)
    assert ("nvidia-jetpack" in str(entry["get"])) is not installed


def test_what_tensorrts_own_way_in_brings_is_not_asked_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(importlib.metadata, "version", without("tensorrt", "pycuda"))
    monkeypatch.setattr(machine, "gpus", lambda: ("a GPU",))
    entry = next(e for e in abilities.what_works() if "TensorRT engine" in str(e["does"]))
    assert [name.split(">")[0] for name in entry["missing"]] == ["TensorRT", "pycuda"]  # type: ignore[union-attr]
    assert str(entry["get"]).count("pip install") == 1


def test_engines_run_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: ())
    for entry in abilities.what_works():
        if "bundle's TensorRT" in str(entry["does"]):
            assert entry["missing"][0] == "an NVIDIA GPU with its driver"  # type: ignore[index]


def test_the_key_that_signs_engines_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_in(tmp_path, monkeypatch)
    assert "none yet: the first build-engine makes it" in shown(diagnose(load_torch=False))
    own(engine_entry())
    assert diagnose(load_torch=False)["machine"]["engine_key"] == str(key_path())
    assert key_path().is_relative_to(tmp_path)


def test_a_package_that_does_not_load_is_said_to() -> None:
    from unetsharp.diagnosis.packages import _note

    assert "does not load" in _note("no_such_module_at_all", str)


def test_a_machine_with_a_gpu_and_a_jetson_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    orin = machine.Gpu(name="Orin [8GB]", target="sm87", memory_bytes=8 << 30)
    monkeypatch.setattr(machine, "gpus", lambda: (orin,))
    monkeypatch.setattr(machine, "jetson_release", lambda: "# R36 (release), REVISION: 4.3")
    monkeypatch.setattr(machine, "cuda_version", lambda: "12.6")
    text = shown(diagnose(load_torch=False))
    for expected in ("Orin [8GB], sm87, 8.0 GiB", "R36 (release)", "up to CUDA 12.6"):
        assert expected in text


def test_missing_packages_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "packages_distributions", dict)
    assert {entry["version"] for entry in installed(load_torch=False)} == {None}


class FakeDriver:
    """libcuda as `machine` calls it: one H100, CUDA 13.0."""

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 1
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 13000
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, length: int, device: Any) -> int:
        name.value = b"NVIDIA H100"
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> int:
        memory._obj.value = 80 << 30
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = {75: 9, 76: 0}[attribute]
        return 0


def test_gpus_as_the_driver_tells_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_driver", FakeDriver)
    assert machine.gpus() == (machine.Gpu(name="NVIDIA H100", target="sm90", memory_bytes=80 << 30),)
    assert machine.cuda_version() == "13.0"


def test_no_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_driver", lambda: None)
    assert (machine.gpus(), machine.cuda_version()) == ((), None)
