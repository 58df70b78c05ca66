"""build-engine with the real TensorRT-RTX, which needs no GPU, and what it refuses."""

import itertools
import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from support.tiny_onnx import INFO, save_tiny_onnx, tiny_onnx
from unetsharp import machine
from unetsharp.build import choice, flavours
from unetsharp.build.builder import Tuning
from unetsharp.build.bundle import open_bundle, problems_of
from unetsharp.build.manifest import SCHEMA
from unetsharp.build.pipeline import BuildOptions, build_bundle, typed
from unetsharp.build.progress import PhaseTracker
from unetsharp.build.source import read_source
from unetsharp.cli.output import Advance, Output, Verbosity
from unetsharp.export.precision import to_fp16
from unetsharp_engines.errors import InputError, MissingCapabilityError
from unetsharp_engines.files import sha256_of

PROGRAM = str(Path(sys.executable).with_name("unetsharp"))
QUIET = Output(verbosity=Verbosity.QUIET)


@pytest.fixture
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'unetsharp[rtx]'")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_tiny_onnx(tmp_path / "model.onnx")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: ())


def one_gpu(target: str) -> Any:
    return lambda: (machine.Gpu(name="test", target=target, memory_bytes=1 << 33),)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_one_engine_for_two_gpus(source: Path, tmp_path: Path, precision: str) -> None:
    options = BuildOptions(runtime="tensorrt-rtx", precision=precision, targets=("sm86", "sm120"), batch=(1, 4, 8))
    bundle = build_bundle(source, tmp_path / "bundle", options, QUIET)
    (engine,) = bundle.manifest.engines
    assert engine.targets == ("sm86", "sm120")
    assert engine.profile == {"min": (1, 3, 64, 64), "opt": (4, 3, 64, 64), "max": (8, 3, 64, 64)}
    assert (engine.runtime, engine.cuda) == ("tensorrt-rtx", "13")
    assert engine.version == flavours.load(flavours.RTX).version
    assert bundle.manifest.precision == precision
    assert bundle.manifest.info == INFO
    assert bundle.read_onnx() == source.read_bytes(), "the ONNX as it was given"
    assert len(bundle.read_engine(engine)) == engine.file.size > 10_000
    assert engine.file.sha256 == sha256_of(bundle.root / engine.file.path)
    assert problems_of(bundle) == []


@pytest.mark.usefixtures("rtx")
def test_an_engine_that_computes_in_fp16_was_built_from_fp16_tensors(source: Path, tmp_path: Path) -> None:
    """The engine names its tensors' types: TensorRT-RTX's own account, in the plan, of what it was given."""
    import tensorrt_rtx

    given = []
    real = tensorrt_rtx.OnnxParser.parse

    def parse(parser: Any, model: bytes) -> bool:
        given.append(onnx.ModelProto.FromString(model))
        return bool(real(parser, model))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorrt_rtx.OnnxParser, "parse", parse)
        for precision in ("fp16", "fp32"):
            options = BuildOptions(runtime="tensorrt-rtx", precision=precision, targets=("sm89",))
            build_bundle(source, tmp_path / precision, options, QUIET)
    types = [{t.data_type for t in model.graph.initializer if t.name.startswith("w")} for model in given]
    assert types == [{onnx.TensorProto.FLOAT16}, {onnx.TensorProto.FLOAT}]


@pytest.mark.usefixtures("rtx")
def test_the_shipped_u_net_sharp_is_built(tmp_path: Path) -> None:
    edge = Path(str(files("unetsharp"))) / "assets" / "edge.onnx"
    options = BuildOptions(runtime="tensorrt-rtx", targets=("sm86", "sm89"))
    bundle = build_bundle(edge, tmp_path / "bundle", options, QUIET)
    assert bundle.manifest.info.name == "unetsharp-edge"
    assert bundle.manifest.engines[0].profile["max"] == (16, 3, 256, 256)
    assert bundle.manifest.engines[0].file.size > 1_000_000


def test_engines_are_built_from_the_rewrites_that_suit_their_runtime() -> None:
    edge = read_source(Path(str(files("unetsharp"))) / "assets" / "edge.onnx")
    built = {
        runtime: onnx.ModelProto.FromString(typed(edge, "fp32", runtime=runtime, strongly=True))
        for runtime in ("tensorrt", "tensorrt-rtx")
    }
    products = {runtime: sum(n.op_type == "MatMul" for n in model.graph.node) for runtime, model in built.items()}
    assert products["tensorrt-rtx"] > products["tensorrt"], "deep convolutions at low resolution"


def test_a_network_exported_without_rewrites_is_built_as_it_is(source: Path) -> None:
    plain = read_source(source)
    assert typed(plain, "fp32", runtime="tensorrt-rtx", strongly=True) == plain.content


@pytest.mark.usefixtures("rtx", "no_gpu")
def test_by_default_an_engine_is_for_every_gpu_but_turing(source: Path, tmp_path: Path) -> None:
    bundle = build_bundle(source, tmp_path / "bundle", BuildOptions(), QUIET)
    assert {"sm80", "sm86", "sm89", "sm120"} <= set(bundle.manifest.engines[0].targets)
    assert "sm75" not in bundle.manifest.engines[0].targets
    assert bundle.manifest.precision == "fp16"


@pytest.mark.usefixtures("rtx")
def test_an_fp16_onnx_is_built_as_it_is(tmp_path: Path) -> None:
    onnx.save(to_fp16(tiny_onnx()), tmp_path / "half.onnx")
    options = BuildOptions(runtime="tensorrt-rtx", targets=("sm86",))
    bundle = build_bundle(tmp_path / "half.onnx", tmp_path / "bundle", options, QUIET)
    assert bundle.manifest.precision == "fp16"
    with pytest.raises(InputError, match="fp16 already"):
        build_bundle(tmp_path / "half.onnx", tmp_path / "b", BuildOptions(precision="fp32"), QUIET)


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("target", ["sm87", "sm90", "sm999"])
def test_gpus_it_cannot_build_for_are_refused_with_those_it_can(source: Path, tmp_path: Path, target: str) -> None:
    options = BuildOptions(runtime="tensorrt-rtx", targets=(target,))
    with pytest.raises(InputError, match=r"sm86.*--runtime tensorrt on the device itself"):
        build_bundle(source, tmp_path / "bundle", options, QUIET)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.usefixtures("rtx")
def test_turing_together_with_others_is_built_with_a_warning(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for targets in (("sm75",), ("sm75", "sm86")):
        options = BuildOptions(runtime="tensorrt-rtx", targets=targets)
        assert build_bundle(source, tmp_path / "b", options, QUIET).manifest.engines[0].targets == targets
        assert ("sm75 (Turing)" in capsys.readouterr().err) is (len(targets) > 1)


def test_a_bundle_can_be_built_again_from_its_own_onnx(source: Path, tmp_path: Path) -> None:
    options = BuildOptions(runtime="onnxruntime")
    first = build_bundle(source, tmp_path / "b", options, QUIET)
    again = build_bundle(first.root / "model.onnx", first.root, options, QUIET)
    assert again.manifest.onnx == first.manifest.onnx


@pytest.mark.usefixtures("rtx")
def test_a_node_that_the_parser_does_not_know_is_named(tmp_path: Path) -> None:
    model = tiny_onnx()
    node = next(n for n in model.graph.node if n.name == "mish")
    node.op_type, node.domain = "Mishmash", "example.org"
    model.opset_import.append(helper.make_opsetid("example.org", 1))
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(InputError, match=r"TensorRT-RTX .* node 'mish' \(Mishmash\): .*[Pp]lugin") as caught:
        build_bundle(
            tmp_path / "odd.onnx",
            tmp_path / "bundle",
            BuildOptions(runtime="tensorrt-rtx", precision="fp32", targets=("sm86",)),
            QUIET,
        )
    assert "with this version of unetsharp, which every TensorRT from 8.6 on parses" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("rtx")
def test_a_failed_build_gives_tensorrts_reason_in_one_line(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A profile that the network's fixed sides contradict: TensorRT finds out when it builds.
    monkeypatch.setattr("unetsharp.build.pipeline._profile", lambda *_: _profile_of(96))
    with pytest.raises(InputError, match=r"could not build it: .*profile has min=96") as caught:
        build_bundle(source, tmp_path / "b", BuildOptions(runtime="tensorrt-rtx", targets=("sm86",)), QUIET)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "b").exists()


def _profile_of(side: int) -> Any:
    from unetsharp.build.builder import Profile

    return Profile(min=(1, 3, side, side), opt=(1, 3, side, side), max=(1, 3, side, side))


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(
    "change", [{"level": 3}, {"timing_cache": Path("t")}, {"workspace": 9}, {"version_compatible": True}]
)
def test_tensorrts_own_options_are_refused_with_rtx(source: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="measures no kernels"):
        build_bundle(source, tmp_path / "b", BuildOptions(runtime="tensorrt-rtx", tuning=Tuning(**change)), QUIET)


def test_onnxruntime_bundles_hold_the_onnx_alone(source: Path, tmp_path: Path) -> None:
    bundle = build_bundle(source, tmp_path / "bundle", BuildOptions(runtime="onnxruntime"), QUIET)
    assert bundle.manifest.engines == ()
    assert bundle.manifest.precision == "fp32"
    assert sorted(path.name for path in bundle.root.iterdir()) == ["manifest.json", "model.onnx"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"runtime": "onnxruntime", "targets": ("sm86",)}, "builds no engine"),
        ({"runtime": "onnxruntime", "precision": "fp16"}, "slower than fp32"),
        ({"runtime": "onnxruntime", "tuning": Tuning(level=2)}, "measures no kernels"),
        ({"runtime": "onnxruntime", "tuning": Tuning(time_limit=9)}, "cannot be stopped; leave it out$"),
        ({"runtime": "openvino"}, "wanted one of auto"),
        ({"batch": (4, 2, 8)}, "MIN ≤ OPT ≤ MAX"),
        ({"batch": (0, 1, 2)}, "MIN ≤ OPT ≤ MAX"),
    ],
)
def test_options_that_do_not_fit_are_refused(source: Path, tmp_path: Path, options: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        build_bundle(source, tmp_path / "b", BuildOptions(**options), QUIET)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("tuning", "says"),
    [
        ({"level": 9}, "0 to 5"),
        ({"timing_cache": Path()}, "a folder; name a file"),
        ({"workspace": 0}, "wanted megabytes"),
        ({"time_limit": 0.0}, "wanted seconds"),
        ({"time_limit": float("nan")}, "wanted seconds"),
    ],
)
def test_tuning_that_no_build_could_use_is_refused(tuning: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Tuning(**tuning)


@pytest.mark.usefixtures("rtx")
def test_a_tensorrt_that_does_not_start_says_why(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bindings raise TypeError where the library makes no builder, having told the log why."""
    import tensorrt_rtx

    def fails(log: Any) -> None:
        log.log(tensorrt_rtx.ILogger.ERROR, "no CUDA-capable device is detected")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(tensorrt_rtx, "Builder", fails)
    options = BuildOptions(runtime="tensorrt-rtx", targets=("sm86",))
    with pytest.raises(MissingCapabilityError, match="does not start here: no CUDA-capable device is detected"):
        build_bundle(source, tmp_path / "b", options, QUIET)


@pytest.mark.usefixtures("rtx")
def test_a_build_that_takes_too_long_is_given_up(source: Path, tmp_path: Path) -> None:
    options = BuildOptions(runtime="tensorrt-rtx", targets=("sm86",), tuning=Tuning(time_limit=1e-6))
    with pytest.raises(InputError, match=r"not built within --time-limit 1e-06"):
        build_bundle(source, tmp_path / "b", options, QUIET)
    assert not (tmp_path / "b").exists()


def test_an_onnx_of_one_batch_size_wants_that_batch(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    source = save_tiny_onnx(tmp_path / "four.onnx", batch=4)
    with pytest.raises(InputError, match="--batch 4,4,4"):
        build_bundle(source, tmp_path / "b", BuildOptions(runtime="tensorrt-rtx"), QUIET)
    options = BuildOptions(runtime="tensorrt-rtx", batch=(4, 4, 4), targets=("sm86",))
    assert build_bundle(source, tmp_path / "b", options, QUIET).manifest.engines[0].profile["min"] == (4, 3, 64, 64)


@pytest.mark.usefixtures("no_gpu")
def test_tensorrt_without_a_gpu_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingCapabilityError, match="this machine has none; --runtime tensorrt-rtx"):
        build_bundle(source, tmp_path / "b", BuildOptions(runtime="tensorrt"), QUIET)


class WithoutModules:
    """Stands for `importlib` on a machine where no TensorRT is installed."""

    @staticmethod
    def import_module(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_auto_without_any_tensorrt_is_onnxruntime_unless_an_engine_was_asked_for(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flavours, "importlib", WithoutModules)
    assert choice.choose("auto", ()).loaded is None
    with pytest.raises(MissingCapabilityError, match=r"pip install 'unetsharp\[rtx\]'"):
        choice.choose("auto", ("sm86",))
    with pytest.raises(MissingCapabilityError, match=r"pip install 'unetsharp\[rtx\]'"):
        build_bundle(source, tmp_path / "b", BuildOptions(precision="fp16"), QUIET)
    with pytest.raises(MissingCapabilityError, match="TensorRT-RTX cannot be loaded here"):
        choice.choose("tensorrt-rtx", ())
    monkeypatch.setattr(machine, "gpus", one_gpu("sm86"))
    with pytest.raises(
        MissingCapabilityError, match=r"TensorRT cannot be loaded here .* pip install 'unetsharp\[gpu\]'"
    ):
        choice.choose("tensorrt", ())


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(
    ("gpus", "says"),
    [
        (lambda: (), "this one has none"),
        (one_gpu("sm86"), r"this machine's \(sm86\) among them"),
        (one_gpu("sm90"), r"not for this one's \(sm90\)"),
    ],
)
def test_auto_says_what_the_engine_is_for(monkeypatch: pytest.MonkeyPatch, gpus: Any, says: str) -> None:
    monkeypatch.setattr(machine, "gpus", gpus)
    chosen = choice.choose("auto", ())
    assert chosen.label.startswith("TensorRT-RTX ")
    assert re.search(says, chosen.why)


class Version:
    """A TensorRT module as far as `Loaded` reads it."""

    def __init__(self, version: str, members: dict[str, int]) -> None:
        self.__version__ = version
        self.NetworkDefinitionCreationFlag = type("F", (), {"__members__": members})


@pytest.mark.parametrize(
    ("version", "members", "flags", "typed"),
    [
        ("8.6.1", {"EXPLICIT_BATCH": 0, "EXPLICIT_PRECISION": 1}, 0b01, False),
        ("10.3.0", {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, 0b10, True),
        ("11.4.0", {"STRONGLY_TYPED": 0}, 0b01, True),
        ("11.9.0", {}, 0, True),
    ],
)
def test_network_flags_of_each_tensorrt(version: str, members: dict[str, int], flags: int, typed: bool) -> None:
    loaded = flavours.Loaded(flavour=flavours.TENSORRT, trt=Version(version, members))
    assert (loaded.network_flags(), loaded.is_strongly_typed) == (flags, typed)


class Recorder(Advance):
    def __init__(self) -> None:
        super().__init__()
        self.position = 0.0
        self.seen: list[float] = []

    def __call__(self, steps: float = 1, text: str | None = None) -> None:
        self.position += steps
        self.seen.append(self.position)


def test_nested_phases_move_one_bar_forward_to_its_end() -> None:
    bar = Recorder()
    tracker = PhaseTracker(bar)
    tracker.phase_start("build", None, 2)
    tracker.phase_start("optimize", "build", 4)
    assert tracker.step_complete("optimize", 0)
    assert bar.position == pytest.approx(12.5)
    tracker.phase_finish("optimize")  # before its last step
    tracker.step_complete("build", 0)
    assert bar.position == pytest.approx(50)
    tracker.phase_start("time", "build", 10)
    tracker.step_complete("time", 4)
    tracker.step_complete("time", 3)  # late: threads report as they please
    assert bar.position == pytest.approx(75)
    tracker.step_complete("build", 1)
    assert bar.position == pytest.approx(100)
    assert all(a <= b for a, b in itertools.pairwise(bar.seen))


@pytest.mark.usefixtures("rtx")
def test_a_cancelled_build_stops_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    """Ctrl-C, as the command line gets it, in the middle of a build."""
    script = f"""
import _thread, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with Ctrl-C ignored
from unetsharp.build import progress
real = progress.PhaseTracker.phase_start
def interrupting(self, name, parent, steps):
    real(self, name, parent, steps)
    if name == "Optimizing graph":
        _thread.interrupt_main()
progress.PhaseTracker.phase_start = interrupting
import sys
sys.argv = ["unetsharp", "build-engine", {str(source)!r}, "-o", {str(tmp_path / "b")!r}, "--runtime", "tensorrt-rtx"]
from unetsharp.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert "interrupted" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.usefixtures("rtx")
def test_the_command_as_a_person_runs_it(source: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    done = run("build-engine", source, "-o", bundle, "--fp16", "--target", "sm86,SM89", "--batch", "1,2,4")
    assert done.returncode == 0, done.stderr
    assert "fp16, sm86, sm89" in done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines() if line[0] != " "] == ["Bundle", "ONNX", "Engine"]
    done = run("build-engine", source, "-o", bundle, "--fp32", "--target", "sm86", "--json")
    manifest = json.loads(done.stdout)["manifest"]
    assert (manifest["schema"], manifest["precision"]) == (SCHEMA, "fp32"), "the bundle was replaced"
    assert open_bundle(bundle).manifest.to_dict()["engines"][0]["targets"] == ("sm86",)
    done = run("build-engine", source, "-o", bundle, "--fp32", "--target", "sm75", "--add")
    assert [f"for {target};" in " ".join(done.stdout.split()) for target in ("sm86", "sm75")] == [True, True]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--batch", "8"], "MIN,OPT,MAX"),
        (["--batch", "1,x,3"], "MIN,OPT,MAX"),
        (["--fp16", "--fp32"], "give one"),
        (["--target", "8.6"], "write 8.6 as sm86"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(
    source: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    done = run("build-engine", source, "-o", tmp_path / "b", *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert says in done.stderr


def no_metadata(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def other_channels(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5


def other_name(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "x"


@pytest.mark.parametrize(
    ("change", "says"),
    [(no_metadata, "without unetsharp's metadata"), (other_channels, "wanted image"), (other_name, "wanted image")],
)
def test_an_onnx_that_is_not_ours_is_refused(tmp_path: Path, change: Any, says: str) -> None:
    model = tiny_onnx()
    change(model)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match=says):
        build_bundle(tmp_path / "model.onnx", tmp_path / "b", BuildOptions(), QUIET)


@pytest.mark.parametrize("content", [b"", b"\x08garbage" * 9, None])
def test_a_file_that_is_no_onnx_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.onnx: "):
        build_bundle(tmp_path / "model.onnx", tmp_path / "b", BuildOptions(), QUIET)
