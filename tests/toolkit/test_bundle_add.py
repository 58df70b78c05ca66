"""build-engine --add and --rebuild with the real TensorRT-RTX: several engines in one bundle, folder or zip."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.painter_network import painted_folder, painter
from support.tiny_onnx import save_tiny_onnx
from support.user_folders import keep_in
from unetsharp import machine
from unetsharp.build import flavours
from unetsharp.build.bundle import Bundle, open_bundle, problems_of
from unetsharp.build.fit import Host, fitting_engine
from unetsharp.build.pipeline import BuildOptions, build_bundle
from unetsharp.build.rebuild import rebuilt
from unetsharp.cli.output import Output, Verbosity
from unetsharp_engines.errors import InputError, MissingCapabilityError

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'unetsharp[rtx]'")

PROGRAM = str(Path(sys.executable).with_name("unetsharp"))
QUIET = Output(verbosity=Verbosity.QUIET)


def options(target: str, **changes: Any) -> BuildOptions:
    return BuildOptions(runtime="tensorrt-rtx", targets=(target,), batch=(1, 2, 4), **changes)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_tiny_onnx(tmp_path / "model.onnx")


@pytest.fixture(params=["bundle", "bundle.zip"])
def bundle(tmp_path: Path, source: Path, request: pytest.FixtureRequest) -> Bundle:
    return build_bundle(source, tmp_path / request.param, options("sm86"), QUIET)


def test_an_engine_is_added_from_the_bundles_own_onnx_and_the_right_one_chosen(bundle: Bundle) -> None:
    both = build_bundle(bundle.root, bundle.root, options("sm120", add=True), QUIET)
    assert problems_of(both) == []
    assert both.manifest.engines[0] == bundle.manifest.engines[0], "the first engine stays as it is"
    assert both.manifest.precision == "fp16"
    for target in ("sm86", "sm120"):
        host = Host(
            runtime="tensorrt-rtx",
            version=flavours.load(flavours.RTX).version,
            target=target,
            platform=machine.os_and_arch(),
        )
        engine = fitting_engine(both, host)
        assert engine.targets == (target,)
        assert both.read_engine(engine).startswith(b"vtrt"), "signed when it was built, so trusted"


def test_an_engine_for_the_same_gpus_is_replaced(bundle: Bundle) -> None:
    again = build_bundle(bundle.root, bundle.root, options("sm86", add=True), QUIET)
    assert len(again.manifest.engines) == 1


def test_an_engine_joins_a_bundle_of_the_onnx_alone(source: Path, tmp_path: Path) -> None:
    plain = build_bundle(source, tmp_path / "b", BuildOptions(runtime="onnxruntime"), QUIET)
    assert (plain.manifest.precision, plain.manifest.engines) == ("fp32", ())
    assert build_bundle(plain.root, plain.root, options("sm86", add=True), QUIET).manifest.precision == "fp16"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"precision": "fp32"}, "holds fp16 engines, and every bundle has one precision"),
        ({"precision": "int8", "calibration": Path("pannuke")}, "holds a fp32 ONNX, and INT8 is another"),
    ],
)
def test_a_bundle_has_one_precision(bundle: Bundle, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        build_bundle(bundle.root, bundle.root, options("sm89", add=True, **changes), QUIET)


def test_a_bundle_has_one_network(bundle: Bundle, tmp_path: Path) -> None:
    other = save_tiny_onnx(tmp_path / "other.onnx", scale=2.0)
    with pytest.raises(InputError, match=r"other\.onnx: is not the ONNX in .*bundle"):
        build_bundle(other, bundle.root, options("sm89", add=True), QUIET)


def test_there_must_be_a_bundle_to_add_to_and_an_engine_to_add(bundle: Bundle, source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such bundle"):
        build_bundle(source, tmp_path / "new", options("sm86", add=True), QUIET)
    with pytest.raises(MissingCapabilityError, match="--add needs an engine to add"):
        build_bundle(source, bundle.root, BuildOptions(runtime="onnxruntime", precision=None, add=True), QUIET)


def test_a_quantized_bundle_takes_quantized_engines_and_says_what_was_lost(tmp_path: Path) -> None:
    onnx = painter(tmp_path / "model.onnx", hard=True)
    folder = painted_folder(tmp_path)
    first = build_bundle(onnx, tmp_path / "b", options("sm86", precision="int8", calibration=folder), QUIET)
    assert first.manifest.quantization is not None
    assert first.manifest.quantization["drift"]["agreement"] >= 0.99
    assert set(first.manifest.layers.values()) == {"fp32", "int8"}
    both = build_bundle(first.root, first.root, options("sm120", add=True), QUIET)
    assert [engine.targets for engine in both.manifest.engines] == [("sm86",), ("sm120",)]
    assert both.manifest.quantization == first.manifest.quantization
    assert set(both.manifest.engines[1].layers.values()) == {"fp16", "int8"}, "TensorRT-RTX gets FP16 beside INT8"


def test_rebuild_adds_an_engine_with_the_batches_of_the_others(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: ())
    again = rebuilt(bundle, "tensorrt-rtx", QUIET)
    assert [engine.profile for engine in again.manifest.engines] == [bundle.manifest.engines[0].profile] * 2
    assert again.is_trusted(again.manifest.engines[1])


def test_rebuild_leaves_foreign_engines_foreign(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keep_in(tmp_path / "another-user", monkeypatch)
    again = rebuilt(open_bundle(bundle.root), "tensorrt-rtx", QUIET)
    assert [again.is_trusted(engine) for engine in again.manifest.engines] == [False, True]


def test_the_commands_as_a_person_runs_them(source: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=False)

    packed = tmp_path / "bundle.zip"
    done = run("build-engine", source, "-o", packed, "--target", "sm86", "--runtime", "tensorrt-rtx")
    assert done.returncode == 0, done.stderr
    done = run("build-engine", packed, "-o", packed, "--add", "--target", "sm120", "--runtime", "tensorrt-rtx")
    assert done.returncode == 0, done.stderr
    done = run("inspect", packed)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("built by you") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle.zip", "model.onnx"]
