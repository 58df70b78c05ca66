"""open_runtime: each form of model with each runtime's name is used, or refused with what to do."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.bundles import engine_entry, manifest_of
from support.fake_cuda import Gpu as FakeGpu
from support.fake_tensorrt import install
from support.tiny_onnx import save_tiny_onnx
from unetsharp import machine, runtimes
from unetsharp.build.bundle import Bundle, file_entry, open_bundle, write_bundle
from unetsharp.build.pipeline import BuildOptions, build_bundle
from unetsharp.build.trust import signed
from unetsharp.cli.output import Output, Verbosity
from unetsharp.runtimes import RUNTIMES, open_runtime
from unetsharp_engines.cuda import device
from unetsharp_engines.errors import InputError, MissingCapabilityError
from unetsharp_engines.stain import IDENTITY, StainPlan

PROGRAM = str(Path(sys.executable).with_name("unetsharp"))
QUIET = Output(verbosity=Verbosity.QUIET)
TILES = np.random.default_rng(2).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
PLAIN = StainPlan(IDENTITY)


class Said(Output):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    return save_tiny_onnx(tmp_path / "model.onnx")


@pytest.fixture
def bundle(onnx: Path, tmp_path: Path) -> Path:
    return build_bundle(onnx, tmp_path / "plain", BuildOptions(runtime="onnxruntime"), QUIET).root


@pytest.fixture
def engine_bundle(onnx: Path, tmp_path: Path) -> Path:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'unetsharp[rtx]'")
    options = BuildOptions(runtime="tensorrt-rtx", targets=("sm86",))
    return build_bundle(onnx, tmp_path / "rtx", options, QUIET).root


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    header = b'{"__metadata__":{}}'
    (tmp_path / "weights.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return tmp_path / "weights.safetensors"


@pytest.mark.parametrize("name", ["auto", "onnxruntime"])
def test_an_onnx_and_its_bundle_give_the_same_labels(onnx: Path, bundle: Path, name: str) -> None:
    seen = [open_runtime(model, name).labels(TILES, PLAIN) for model in (onnx, bundle)]
    assert (seen[0] == seen[1]).all()
    assert seen[0].shape == (2, 64, 64)


def test_auto_says_which_runtime_and_why(onnx: Path, bundle: Path, engine_bundle: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: ())
    reasons = {
        onnx: "since the model is an ONNX",
        bundle: "since it holds no engine",
        engine_bundle: "since this machine has no NVIDIA GPU",
    }
    for model, reason in reasons.items():
        said = Said()
        assert open_runtime(model, output=said).name == "onnxruntime"
        assert len(said.lines) == 1
        assert said.lines[0].startswith("Runtime: ONNX Runtime ")
        assert reason in said.lines[0]


def test_a_runtime_asked_for_by_name_is_said_to_be(onnx: Path) -> None:
    said = Said()
    open_runtime(onnx, "onnxruntime", output=said)
    assert said.lines[0].endswith("as asked")


@pytest.mark.parametrize(
    ("form", "name", "says"),
    [
        ("onnx", "torch", "--runtime onnxruntime"),
        ("onnx", "tensorrt", "unetsharp build-engine"),
        ("onnx", "tensorrt-rtx", "unetsharp build-engine"),
        ("bundle", "torch", "--runtime onnxruntime"),
        ("bundle", "tensorrt", "holds engines for no runtime"),
        ("engine_bundle", "tensorrt", "holds engines for tensorrt-rtx, none for tensorrt"),
        ("weights", "onnxruntime", "unetsharp export"),
        ("weights", "tensorrt", "unetsharp build-engine"),
        ("weights", "tensorrt-rtx", "unetsharp build-engine"),
    ],
)
def test_forms_that_do_not_fit_are_refused_with_the_next_step(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, form: str, name: str, says: str
) -> None:
    here = machine.Gpu(name="a GPU", target="sm86", memory_bytes=1 << 30)
    monkeypatch.setattr(machine, "gpus", lambda: (here,))
    with pytest.raises(InputError, match=says) as caught:
        open_runtime(request.getfixturevalue(form), name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", [None, "onnx", "bundle", "engine_bundle", "weights"])
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_without_a_gpu_that_is_what_is_missing(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, form: str | None, name: str
) -> None:
    """Whatever else is to be done for an engine, it would be in vain here."""
    monkeypatch.setattr(machine, "gpus", lambda: ())
    with pytest.raises(MissingCapabilityError, match=f"--runtime {name}: engines run on an NVIDIA GPU, and"):
        open_runtime(form and request.getfixturevalue(form), name)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_the_installed_command_says_what_is_missing_and_exits_3(tmp_path: Path, onnx: Path, name: str) -> None:
    magic = {"tensorrt": b"ftrt", "tensorrt-rtx": b"vtrt"}[name]
    entry = engine_entry(magic, runtime=name)
    model = file_entry("model.onnx", onnx.read_bytes())
    manifest = dataclasses.replace(manifest_of(signed(entry, model.sha256, QUIET)), onnx=model)
    bundle = write_bundle(tmp_path / "b", manifest, {"model.onnx": onnx.read_bytes(), entry.file.path: magic}).root
    Image.fromarray(TILES[0]).save(tmp_path / "tile.png")
    done = subprocess.run(
        [PROGRAM, "infer", tmp_path / "tile.png", "-m", bundle, "--runtime", name, "-o", tmp_path / "out"],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"error: --runtime {name}: engines run on an NVIDIA GPU, and this machine's driver shows none"
    )


def test_an_engine_by_itself_is_refused(engine_bundle: Path) -> None:
    (plan,) = engine_bundle.glob("*.plan")
    with pytest.raises(InputError, match="give the bundle it came from"):
        open_runtime(plan)


class TestOnAGpu:
    """With a GPU made of numpy, and a bundle whose engine it runs."""

    @pytest.fixture(autouse=True)
    def _gpu(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        install(FakeGpu(), monkeypatch, most=4)
        here = machine.Gpu(name="a GPU made of numpy", target="sm90", memory_bytes=1 << 30)
        monkeypatch.setattr(machine, "gpus", lambda: (here,))
        yield
        device._opened.cache_clear()

    def bundle(self, root: Path, *, onnx: Path, own_engine: bool = True, **changes: Any) -> Path:
        content = b"ftrt taps half"
        fits = {"runtime": "tensorrt", "version": "11.4.0.106", "targets": ("sm90",)}
        entry = engine_entry(content, **(fits | changes))
        model = file_entry("model.onnx", onnx.read_bytes())
        entry = signed(entry, model.sha256, QUIET) if own_engine else entry
        manifest = dataclasses.replace(manifest_of(entry), onnx=model)
        return write_bundle(root, manifest, {"model.onnx": onnx.read_bytes(), entry.file.path: content}).root

    @pytest.mark.parametrize("name", ["auto", "tensorrt"])
    def test_the_bundles_engine_runs(self, onnx: Path, tmp_path: Path, name: str) -> None:
        said = Said()
        with open_runtime(self.bundle(tmp_path / "b", onnx=onnx), name, output=said) as runtime:
            assert (runtime.name, runtime.version, runtime.device) == ("tensorrt", "11.4.0.106", "a GPU made of numpy")
            assert runtime.labels(TILES, PLAIN).shape == (2, 64, 64)
        (line,) = said.lines
        assert line.startswith("Runtime: TensorRT 11.4.0.106 on a GPU made of numpy, ")
        assert line.endswith("as asked" if name == "tensorrt" else "an engine for this GPU")

    def test_the_onnx_runs_by_name(self, onnx: Path, tmp_path: Path) -> None:
        assert open_runtime(self.bundle(tmp_path / "b", onnx=onnx), "onnxruntime").name == "onnxruntime"

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"own_engine": False}, "not built by you here; --trust"),
            ({"targets": ("sm86",)}, "runs on sm86 only"),
            ({"version": "10.3.0"}, "was built by TensorRT 10.3.0"),
        ],
        ids=["foreign", "another GPU", "another version"],
    )
    def test_an_engine_that_may_not_run(self, onnx: Path, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
        bundle = self.bundle(tmp_path / "b", onnx=onnx, **changes)
        with pytest.raises(InputError, match=says):
            open_runtime(bundle, "tensorrt")
        said = Said()
        assert open_runtime(bundle, output=said).name == "onnxruntime"
        assert says in said.lines[0]

    def test_trust_runs_a_foreign_engine(self, onnx: Path, tmp_path: Path) -> None:
        bundle = self.bundle(tmp_path / "b", onnx=onnx, own_engine=False)
        with open_runtime(bundle, "tensorrt", trust=True) as runtime:
            assert runtime.name == "tensorrt"

    def test_rebuild_builds_where_none_may_run(
        self, onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []

        def rebuilt(bundle: Bundle, runtime: str, output: Output) -> Bundle:
            asked.append(runtime)
            return open_bundle(self.bundle(tmp_path / "new", onnx=onnx))

        monkeypatch.setattr(runtimes, "rebuilt", rebuilt)
        for changes in ({"own_engine": False}, {}):
            bundle = self.bundle(tmp_path / f"b{len(changes)}", onnx=onnx, **changes)
            open_runtime(bundle, "tensorrt", rebuild=True).close()
        assert asked == ["tensorrt"], "only where it was needed"

    def test_auto_builds_only_where_no_engine_of_any_runtime_fits(
        self, onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []

        def rebuilt(bundle: Bundle, runtime: str, output: Output) -> Bundle:
            asked.append(runtime)
            if runtime == "tensorrt":
                raise MissingCapabilityError("TensorRT is not here to build")
            return open_bundle(self.bundle(tmp_path / "new", onnx=onnx, **rtx))

        rtx = {"runtime": "tensorrt-rtx", "version": "1.7.1.116"}
        monkeypatch.setattr(runtimes, "rebuilt", rebuilt)
        monkeypatch.setattr("unetsharp.build.bundle.ENGINE_MAGICS", {})
        with open_runtime(self.bundle(tmp_path / "fits", onnx=onnx, **rtx), rebuild=True) as runtime:
            assert (runtime.name, asked) == ("tensorrt-rtx", [])
        elsewhere = self.bundle(tmp_path / "elsewhere", onnx=onnx, targets=("sm86",))
        with open_runtime(elsewhere, rebuild=True) as runtime:
            assert (runtime.name, asked) == ("tensorrt-rtx", ["tensorrt", "tensorrt-rtx"])

    def test_rebuild_is_for_bundles(self, onnx: Path) -> None:
        with pytest.raises(InputError, match="--rebuild builds an engine into a bundle"):
            open_runtime(onnx, rebuild=True)

    def test_a_machine_without_pycuda(self, onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pycuda.driver", None)
        bundle = self.bundle(tmp_path / "b", onnx=onnx)
        with pytest.raises(MissingCapabilityError, match="PyCUDA"):
            open_runtime(bundle, "tensorrt")
        said = Said()
        assert open_runtime(bundle, output=said).name == "onnxruntime"
        assert "PyCUDA" in said.lines[0]


def test_an_unknown_runtime_is_refused_with_those_there_are(onnx: Path) -> None:
    with pytest.raises(InputError, match=", ".join(RUNTIMES)):
        open_runtime(onnx, "openvino")


def test_a_bundle_whose_onnx_was_changed_is_refused(bundle: Path) -> None:
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[-3] ^= 4
    (bundle / "model.onnx").write_bytes(content)
    with pytest.raises(InputError, match="SHA-256"):
        open_runtime(bundle)


def test_without_a_model_the_shipped_network_runs_and_says_so() -> None:
    said = Said()
    runtime = open_runtime(None, output=said)
    tile = np.full((1, runtime.info.tile, runtime.info.tile, 3), 230, np.uint8)
    assert runtime.labels(tile, PLAIN).shape == (1, runtime.info.tile, runtime.info.tile)
    assert "edge-sized weights that ship with unetsharp" in said.lines[0]


def test_weights_run_on_torch() -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'unetsharp[export]'")
    weights = files("unetsharp") / "assets" / "edge.safetensors"
    said = Said()
    assert open_runtime(Path(str(weights)), output=said).name == "torch"
    assert said.lines[0].startswith("Runtime: PyTorch ")
    assert said.lines[0].endswith("since the model is weights")
