"""The deep convolutions' kernel as TensorRT is given it: what is offered, how it is launched, who is refused."""

import dataclasses
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from support.bundles import ENGINE, engine_entry, manifest_of
from support.cuda_emulator import emulated
from support.cuda_machine import Machine
from support.fake_tensorrt_plugin import INTERFACE, FakeBuilder, TensorDesc, interface_of
from support.rewriting import BILINEAR, CONV3, RNG, model, node, norm
from support.strict_tensorrt import strict_tensorrt
from unetsharp import machine
from unetsharp.build import plugin
from unetsharp.build.builder import Plan, Profile, build_engine
from unetsharp.build.bundle import file_entry, write_bundle
from unetsharp.build.flavours import RTX, TENSORRT, Loaded
from unetsharp.build.pipeline import BuildOptions, build_bundle
from unetsharp.cli.app import app
from unetsharp.cli.output import Output, Verbosity
from unetsharp.inspection import look_at
from unetsharp_engines.cuda import reference
from unetsharp_engines.errors import InputError, MissingCapabilityError
from unetsharp_engines.rewrites import rewrite

ID = "unetsharp::UpsampleShiftAddMish"


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBuilder]:
    fake = FakeBuilder()
    plugin._register.cache_clear()
    loaded = Loaded(flavour=TENSORRT, trt=fake.install(monkeypatch))  # type: ignore[arg-type]
    plugin.provide_plugin(loaded)
    plugin.provide_plugin(loaded)  # a second network in the same process
    yield fake
    plugin._register.cache_clear()


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize(("kind", "layout"), [("FP16", "LINEAR"), ("FP16", "HWC8"), ("FP32", "LINEAR")])
def test_what_an_engine_launches_is_the_reference(builder: FakeBuilder, kind: str, layout: str, factor: int) -> None:
    """The kernel by its name, on the grid and with the arguments that TensorRT was told, inputs first, output last."""
    n, channels, height, width = 2, 8, 5, 6
    built = builder.build(ID, TensorDesc([n, 9 * channels, height, width], kind, layout), channels, (factor, factor))
    assert built.sides == (n, channels, factor * height, factor * width)
    assert f".entry {built.kernel}(".encode() in built.ptx
    assert b".target sm_75" in built.ptx
    assert len(built.ptx) <= 100_000
    machine, real = Machine(None), np.float16 if kind == "FP16" else np.float32  # type: ignore[arg-type]
    rng = np.random.default_rng(factor)
    taps = rng.normal(size=(n, 9 * channels, height, width)).astype(real)
    scale, shift = rng.normal(size=(2, channels)).astype(np.float32)
    laid = taps.transpose(0, 2, 3, 1) if layout == "HWC8" else taps
    sides = [built.sides[i] for i in ((0, 2, 3, 1) if layout == "HWC8" else (0, 1, 2, 3))]
    out = machine.empty(int(np.prod(sides)) * laid.itemsize)
    run: Any = emulated(built.kernel)
    run.prepare("PPP" + "i" * len(built.between) + "P")
    run.prepared_async_call(
        built.grid, built.block, None, *map(machine.holding, (laid, scale, shift)), *built.between, out
    )
    found = machine.fetch(out, tuple(sides), real).astype(np.float64)
    found = found.transpose(0, 3, 1, 2) if layout == "HWC8" else found
    wanted = reference.deep(taps, scale, shift, factor)
    error = np.abs(found - wanted) / np.maximum(1.0, np.abs(wanted))
    assert error.max() <= (2.0**-10 if kind == "FP16" else 2.0**-18)


@pytest.mark.parametrize(
    ("kind", "channels", "layouts"),
    [("FP16", 64, ["LINEAR", "HWC8"]), ("FP16", 12, ["LINEAR"]), ("FP32", 64, ["LINEAR"])],
)
def test_layouts_among_which_tensorrt_chooses(
    builder: FakeBuilder, kind: str, channels: int, layouts: list[str]
) -> None:
    descs = [TensorDesc([1, 9 * channels, 4, 4], kind), *(TensorDesc([channels], "FP32") for _ in range(2))]
    vector = ("FP32", "LINEAR")
    assert builder.combinations(ID, descs) == [[(kind, layout), vector, vector, (kind, layout)] for layout in layouts]


def test_the_recorded_interface_is_that_of_the_tensorrt_that_is_here() -> None:
    installed = pytest.importorskip("tensorrt.plugin", reason="no TensorRT from 10.7 on is installed")
    if not hasattr(installed, "aot_impl"):
        pytest.skip("this TensorRT takes no plugins compiled ahead of time; from 10.9 on it does")
    assert interface_of(installed) == INTERFACE


def network() -> bytes:
    """A small one that holds the node."""
    nodes = [
        node("Resize", "image - scales", "up", **BILINEAR),
        node("Conv", "up w", "c", **CONV3),
        node("Mish", "c", "m"),
        node("BatchNormalization", "m n0 n1 n2 n3", "n"),
        node("Identity", "n", "o"),
    ]
    scales = np.array([1, 1, 2, 2], np.float32)
    before = model(nodes, {"scales": scales, "w": RNG.normal(size=(5, 6, 3, 3)), **norm("n", 5)}, (6, 3, 4))
    return bytes(rewrite(before, ["deep-one-kernel"])[0].SerializeToString())


def build(loaded: Loaded, onnx: bytes) -> None:
    shape = (1, 6, 3, 4)
    plan = Plan(name="it", onnx=onnx, precision="fp16", profile=Profile(min=shape, opt=shape, max=shape), targets=())
    build_engine(loaded, plan, Output(verbosity=Verbosity.QUIET))


@pytest.mark.parametrize("which", ["tensorrt 8.6", "tensorrt 10.3", "tensorrt-rtx 1.7"])
def test_who_takes_no_plugin_is_told_before_parsing(which: str) -> None:
    trt, log = strict_tensorrt(which)
    loaded = Loaded(flavour=RTX if "rtx" in which else TENSORRT, trt=trt)  # type: ignore[arg-type]
    with pytest.raises(MissingCapabilityError) as refusal:
        build(loaded, network())
    said = str(refusal.value)
    assert said.startswith(
        f"{loaded.label} takes no kernel into its engines, which the rewrite deep-one-kernel asks for;"
    )
    assert "10.9" in said
    assert "\n" not in said
    assert "parse" not in dict(log)


@pytest.fixture
def edge(tmp_path: Path) -> Path:
    """The network that ships, with the node in place of its deep convolutions, float32."""
    path = tmp_path / "edge.onnx"
    shipped = files("unetsharp.assets").joinpath("edge.onnx").read_bytes()
    onnx.save(rewrite(onnx.ModelProto.FromString(shipped), ["deep-one-kernel"])[0], path)
    return path


@pytest.mark.parametrize(
    ("runtime", "refusal", "why"),
    [
        ("onnxruntime", InputError, r"edge.onnx: holds UpsampleShiftAddMish, a kernel for TensorRT; leave"),
        ("tensorrt-rtx", MissingCapabilityError, r"TensorRT-RTX .* takes no kernel into its engines"),
        ("tensorrt", InputError, r"edge.onnx: is fp32 and holds UpsampleShiftAddMish.*in fp16; convert it by"),
    ],
)
def test_what_no_bundle_could_run_is_refused_at_once(
    edge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, refusal: type[Exception], why: str
) -> None:
    if runtime == "tensorrt":
        monkeypatch.setattr(machine, "gpus", lambda: (machine.Gpu(name="one", target="sm90", memory_bytes=1 << 33),))
        FakeBuilder().install(monkeypatch)
    bundle = tmp_path / "bundle"
    with pytest.raises(refusal, match=why):
        build_bundle(edge, bundle, BuildOptions(runtime=runtime), Output(verbosity=Verbosity.QUIET))
    assert not bundle.exists()


def test_a_bundle_with_the_node_is_not_said_to_run_everywhere(
    edge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = edge.read_bytes()
    manifest = dataclasses.replace(manifest_of(engine_entry()), onnx=file_entry("model.onnx", content))
    bundle = write_bundle(tmp_path / "bundle", manifest, {"model.onnx": content, "engine.plan": ENGINE})
    monkeypatch.setattr(machine, "gpus", lambda: ())
    assert look_at(bundle.root)["runs_on"] == []
    shown = CliRunner().invoke(app, ["inspect", str(bundle.root)]).stdout
    assert "runs here on nothing" in " ".join(shown.split())
    monkeypatch.setattr("unetsharp.build.pipeline.build_bundle", lambda *_: bundle)
    done = CliRunner().invoke(app, ["build-engine", str(edge), "-o", str(bundle.root)])
    assert done.exit_code == 0, done.stderr
    assert "only TensorRT takes it" in " ".join(done.stdout.split())
    assert "every machine" not in done.stdout


def test_who_has_no_nvrtc_is_told_before_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(program: str) -> bytes:
        raise MissingCapabilityError("compiling CUDA kernels needs NVRTC; install it")

    monkeypatch.setattr(plugin, "compile_ptx", missing)
    loaded = Loaded(flavour=TENSORRT, trt=FakeBuilder().install(monkeypatch))  # type: ignore[arg-type]
    with pytest.raises(MissingCapabilityError, match="NVRTC"):
        build(loaded, network())
