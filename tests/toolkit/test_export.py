"""export: the ONNX says what PyTorch says, carries what it is, and appears whole or not at all."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from typer.testing import CliRunner

from support.networks import random_network
from support.tiny_onnx import run_onnx
from unetsharp.cli.app import app
from unetsharp.cli.output import Output, Verbosity
from unetsharp.export import exporter
from unetsharp.export.comparison import Gate, compare, sample_tiles
from unetsharp.export.exporter import ExportReport, ExportSettings, export_onnx
from unetsharp_engines import __version__
from unetsharp_engines.contract import INPUT_NAME, OUTPUT_NAME
from unetsharp_engines.errors import GateFailedError, InputError
from unetsharp_engines.files import sha256_of
from unetsharp_engines.model_info import METADATA_KEY, ModelInfo
from unetsharp_engines.runtimes.base import Runtime
from unetsharp_engines.runtimes.onnxruntime import OnnxRuntime
from unetsharp_engines.stain import StainPlan
from unetsharp_trainer.network import load_weights, save_weights

PROGRAM = str(Path(sys.executable).with_name("unetsharp"))
QUIET = Output(verbosity=Verbosity.QUIET)
SIZE = 64
INFO = ModelInfo(name="random", encoder="resnet18", width=4, train_size=224, untaught=("Dead",))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_weights(path, random_network("resnet18", 4), INFO)
    return path


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def report(request: pytest.FixtureRequest, weights: Path) -> ExportReport:
    settings = ExportSettings(precision=request.param, size=SIZE)
    return export_onnx(weights, weights.with_name(f"{request.param}.onnx"), settings, QUIET)


def command(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


# What is written


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_onnx_says_what_pytorch_says(report: ExportReport, weights: Path, batch: int) -> None:
    network, _ = load_weights(weights)
    image = np.random.default_rng(batch).random((batch, 3, SIZE, SIZE), dtype=np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(image)).numpy()
    seen = run_onnx(onnx.load(report.path), image)
    tolerance = 1e-4 if report.settings.precision == "fp32" else 1e-2 * np.abs(expected).max()
    np.testing.assert_allclose(seen, expected, rtol=0, atol=tolerance)


def test_it_carries_what_it_is(report: ExportReport, weights: Path) -> None:
    metadata = {entry.key: entry.value for entry in onnx.load(report.path).metadata_props}
    info = ModelInfo.from_json(metadata[METADATA_KEY], source="the test")
    expected = dataclasses.replace(INFO, tile=SIZE, weights_sha256=sha256_of(weights), tool_version=__version__)
    assert info == report.info == expected
    assert metadata["classes"].startswith("0 Neoplastic, 1 Inflammatory")
    assert metadata["resolution"] == "0.25 µm per pixel"
    assert metadata["stain_normalization"].startswith("macenko, to stains [[0.5626, 0.2159]")
    assert metadata["weights_sha256"] == sha256_of(weights)


def test_interface_is_the_contracts(report: ExportReport) -> None:
    graph = onnx.load(report.path).graph
    (image,), (logits,) = graph.input, graph.output
    assert (image.name, logits.name) == (INPUT_NAME, OUTPUT_NAME)
    assert shape_of(image) == ["N", 3, SIZE, SIZE]
    assert shape_of(logits) == ["N", 6, SIZE, SIZE]
    assert {image.type.tensor_type.elem_type, logits.type.tensor_type.elem_type} == {onnx.TensorProto.FLOAT}


def shape_of(value: onnx.ValueInfoProto) -> list[str | int]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_graph_parses_everywhere(report: ExportReport) -> None:
    model = onnx.load(report.path)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    assert {node.domain for node in model.graph.node} == {""}
    operators = {node.op_type for node in model.graph.node}
    assert {"Softplus", "Tanh"} <= operators
    assert not {"Mish", "Identity", "If", "Loop"} & operators


def test_fp16_is_half_the_size_and_float16_inside(report: ExportReport, weights: Path) -> None:
    sizes = {array.data_type for array in onnx.load(report.path).graph.initializer if np.prod(array.dims) > 8}
    if report.settings.precision == "fp16":
        assert sizes == {onnx.TensorProto.FLOAT16}
        assert report.bytes < 0.55 * weights.stat().st_size
    else:
        assert sizes == {onnx.TensorProto.FLOAT}


def test_report_is_of_this_file(report: ExportReport) -> None:
    assert report.sha256 == sha256_of(report.path)
    assert report.bytes == report.path.stat().st_size
    assert report.comparison.tiles == 3
    assert report.comparison.batches == (3, 1)
    assert 0 < report.comparison.max_difference <= report.bound
    assert json.loads(json.dumps(report.to_dict()))["comparison"]["agreement"] > 0.99


def test_same_weights_same_file(report: ExportReport, weights: Path, tmp_path: Path) -> None:
    assert export_onnx(weights, tmp_path / "again.onnx", report.settings, QUIET).sha256 == report.sha256


def test_runs_as_a_runtime(report: ExportReport) -> None:
    with OnnxRuntime(report.path) as runtime:
        assert runtime.info == report.info


@pytest.mark.parametrize("opset", [18, 20])
def test_later_opsets(opset: int, weights: Path, tmp_path: Path) -> None:
    settings = ExportSettings(size=SIZE, opset=opset, precision="fp16")
    export_onnx(weights, tmp_path / "later.onnx", settings, QUIET)
    assert [o.version for o in onnx.load(tmp_path / "later.onnx").opset_import] == [opset]


def test_network_without_stain_normalization_says_so(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", random_network("resnet18", 4), dataclasses.replace(INFO, stain="none"))
    export_onnx(tmp_path / "w.safetensors", tmp_path / "m.onnx", ExportSettings(size=SIZE), QUIET)
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert metadata["stain_normalization"] == "none"


# The comparison


class Answers(Runtime):
    """Logits by formula: the red level on channel 0, ``offset`` added on channel ``channel``."""

    def __init__(self, channel: int, offset: float) -> None:
        super().__init__(info=dataclasses.replace(INFO, stain="none"), name="answers", version="0", device="cpu")
        self.channel, self.offset = channel, offset

    def _logits(self, tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan) -> npt.NDArray[np.float32]:
        logits = np.zeros((len(tiles_NHWC), 6, *tiles_NHWC.shape[1:3]), np.float32)
        logits[:, 0] = tiles_NHWC[..., 0]
        logits[:, self.channel] += np.float32(self.offset)
        return logits


def test_comparison_in_closed_form() -> None:
    tiles = np.zeros((2, 32, 32, 3), np.uint8)
    tiles[:, :8] = 10  # a quarter of the pixels: red 10, which the offset of 4 on channel 3 leaves in front
    seen = compare(Answers(0, 0.0), Answers(3, 4.0), tiles)
    assert (seen.tiles, seen.batches) == (2, (2, 1))
    assert seen.max_difference == 4.0
    assert seen.mean_difference == pytest.approx(4 / 6)
    assert seen.largest_logit == 10.0
    assert seen.agreement == 0.25


def test_gates_bound_the_difference_by_the_logits_size_and_the_agreement() -> None:
    tiles = np.full((2, 32, 32, 3), 10, np.uint8)
    seen = compare(Answers(0, 0.0), Answers(3, 4.0), tiles)
    Gate(max_difference=0.4, agreement=1.0).check(seen, "it")
    with pytest.raises(GateFailedError, match=r"it differs from PyTorch by up to 4 in a logit; the bound is 3\.9"):
        Gate(max_difference=0.39, agreement=1.0).check(seen, "it")
    turned = compare(Answers(0, 0.0), Answers(3, 14.0), tiles)
    with pytest.raises(GateFailedError, match=r"it gives 0\.0000% of pixels the class .* bound is 99\.0000%"):
        Gate(max_difference=2.0, agreement=0.99).check(turned, "it")


def test_not_a_number_is_no_agreement() -> None:
    seen = compare(Answers(0, 0.0), Answers(3, float("nan")), np.zeros((2, 32, 32, 3), np.uint8))
    with pytest.raises(GateFailedError, match="nan"):
        Gate(max_difference=1.0, agreement=0.0).check(seen, "it")


@pytest.mark.parametrize("size", [32, 256, 384])
def test_sample_tiles_are_three_real_ones(size: int) -> None:
    tiles = sample_tiles(size)
    assert (tiles.shape, tiles.dtype) == ((3, size, size, 3), np.uint8)
    assert len({tile.tobytes() for tile in tiles}) == 3
    assert (tiles.std(axis=(1, 2)) > 1).all()


def test_a_miss_exits_1_and_leaves_what_was_there(weights: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def wrong(*arguments: Any, **settings: Any) -> onnx.ModelProto:
        model = traced(*arguments, **settings)
        (bias,) = (t for t in model.graph.initializer if t.dims == [6])
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(1), bias.name))
        return model

    traced = exporter.trace
    monkeypatch.setattr(exporter, "trace", wrong)
    out = tmp_path / "model.onnx"
    out.write_bytes(b"before")
    done = command(weights, "-o", out, "--size", SIZE)
    assert done.exit_code == 1
    assert "error: the fp32 ONNX differs from PyTorch by up to 1 in a logit" in done.stderr
    assert out.read_bytes() == b"before"
    assert [*tmp_path.iterdir()] == [out]


# The command


def test_the_installed_command(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "model.onnx"
    done = subprocess.run(
        [PROGRAM, "export", weights, "-o", out, "--size", str(SIZE), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["sha256"] == sha256_of(out)
    assert {key: result["settings"][key] for key in ("precision", "size", "opset")} == {
        "precision": "fp32",
        "size": SIZE,
        "opset": 17,
    }
    assert "Warning" not in done.stderr


def test_people_are_told_what_was_written_and_how_near_it_is(weights: Path, tmp_path: Path) -> None:
    done = command(weights, "-o", tmp_path / "model.onnx", "--size", SIZE)
    assert done.exit_code == 0
    for part in ("SHA-256", sha256_of(tmp_path / "model.onnx"), "fp32, opset 17", "Same class"):
        assert part in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--opset", 3], "--opset 3: wanted 17 to 20"),
        (["--size", 100], "--size 100: wanted a multiple of 32 up to 384"),
        (["--size", 512], "--size 512: wanted a multiple of 32 up to 384"),
        (["--size", 0], "--size 0: wanted a multiple of 32 up to 384"),
        (["--precision", "int8"], "--precision int8: wanted one of fp32, fp16"),
    ],
)
def test_wrong_settings_are_one_line(arguments: list[object], says: str, weights: Path, tmp_path: Path) -> None:
    done = command(weights, "-o", tmp_path / "model.onnx", *arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {says}")
    assert len(done.stderr.splitlines()) == 1
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("absent.safetensors", None, "no such file"),
        ("picture.png", b"\x89PNG\r\n\x1a\n" + bytes(100), "not a whole safetensors file"),
        ("network.onnx", b"\x08\x08", "an ONNX; give the weights (.safetensors) that it was made of"),
        ("engine", b"ftrt", "an engine; give the weights (.safetensors) that it was made of"),
    ],
)
def test_wrong_weights_are_one_line(name: str, content: bytes | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = command(tmp_path / name, "-o", tmp_path / "model.onnx")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {tmp_path / name}: {says}")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "model.onnx").exists()


def test_a_folder_is_no_weights(tmp_path: Path) -> None:
    done = command(tmp_path, "-o", tmp_path / "model.onnx")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {tmp_path}: a folder; give a weights file (.safetensors)")


def test_wrong_paths_are_one_line(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").touch()
    for out, says in (
        ("model.bin", "model.bin: wanted a name that ends in .onnx"),
        ("folder.onnx", "folder.onnx: is a folder"),
        ("file/model.onnx", "file: cannot be written to"),
    ):
        done = command(weights, "-o", tmp_path / out, "--size", SIZE)
        assert done.exit_code == 2
        assert done.stderr.startswith(f"error: -o {tmp_path}/{says}"), "before anything is traced"
    assert {path.name for path in tmp_path.iterdir()} == {"folder.onnx", "file"}


def test_interrupted_while_writing_leaves_nothing(weights: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def half(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", half)
    done = command(weights, "-o", tmp_path / "model.onnx", "--size", SIZE)
    assert done.exit_code == 130
    assert not [*tmp_path.iterdir()]


def test_without_onnxsim_it_says_how_to_get_it(weights: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "onnxsim", None)
    done = command(weights, "-o", tmp_path / "model.onnx")
    assert done.exit_code == 3
    assert "error: export needs onnxsim: pip install 'unetsharp[export]'" in done.stderr


def test_settings_raise_for_library_users_too() -> None:
    with pytest.raises(InputError, match="--size 100"):
        ExportSettings(size=100)
