"""INT8 engines: quantized on the way, or before."""

from pathlib import Path

import pytest

from support.painter_network import painted_folder, painter
from unetsharp.build.pipeline import BuildOptions, build_bundle
from unetsharp.build.source import read_source
from unetsharp.cli.output import Output, Verbosity
from unetsharp.export.precision import precision_of, to_fp16
from unetsharp.quantize.drift import Drift, HeldOut
from unetsharp.quantize.quantizer import QuantizeSettings, quantize_source
from unetsharp_engines.errors import GateFailedError, InputError

QUIET = Output(verbosity=Verbosity.QUIET)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return painted_folder(tmp_path_factory.mktemp("pannuke"))


@pytest.fixture
def quantized(tmp_path: Path, folder: Path) -> Path:
    source = read_source(painter(tmp_path / "model.onnx", hard=False))
    path = tmp_path / "int8.onnx"
    path.write_bytes(quantize_source(source, folder, QuantizeSettings(images=3), QUIET).content)
    return path


def rtx(**options: object) -> BuildOptions:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'unetsharp[rtx]'")
    return BuildOptions(runtime="tensorrt-rtx", targets=("sm86", "sm120"), batch=(1, 1, 2), **options)  # type: ignore[arg-type]


def test_a_float_network_is_quantized_on_the_way(tmp_path: Path, folder: Path) -> None:
    onnx = painter(tmp_path / "model.onnx", hard=True)
    bundle = build_bundle(onnx, tmp_path / "bundle", rtx(precision="int8", calibration=folder), QUIET)
    assert bundle.manifest.precision == "int8"
    assert bundle.manifest.engines[0].targets == ("sm86", "sm120")
    assert precision_of(read_source(tmp_path / "bundle" / "model.onnx").model) == "int8"


def test_a_quantized_network_is_built_as_it_is(tmp_path: Path, quantized: Path) -> None:
    bundle = build_bundle(quantized, tmp_path / "bundle", rtx(), QUIET)
    assert bundle.manifest.precision == "int8"
    assert bundle.read_onnx() == quantized.read_bytes()


def test_int8_for_onnxruntime_is_the_onnx_alone(tmp_path: Path, quantized: Path) -> None:
    bundle = build_bundle(quantized, tmp_path / "bundle", BuildOptions(runtime="onnxruntime", precision="int8"), QUIET)
    assert (bundle.manifest.precision, bundle.manifest.engines) == ("int8", ())


def test_int8_placed_for_a_cpu_is_for_no_gpu(tmp_path: Path, folder: Path) -> None:
    onnx = painter(tmp_path / "model.onnx", hard=False)
    options = BuildOptions(runtime="onnxruntime", precision="int8", calibration=folder)
    bundle = build_bundle(onnx, tmp_path / "bundle", options, QUIET)
    with pytest.raises(InputError, match="--runtime tensorrt"):
        build_bundle(bundle.root, tmp_path / "other", rtx(), QUIET)


def test_what_misses_its_budget_is_never_built_in_another_precision(tmp_path: Path, folder: Path) -> None:
    onnx = painter(tmp_path / "model.onnx", hard=True, kernel=3)
    options = BuildOptions(runtime="onnxruntime", precision="int8", calibration=folder)
    with pytest.raises(GateFailedError, match="foreground Dice"):
        build_bundle(onnx, tmp_path / "bundle", options, QUIET)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_int8_weights_give_no_float_engine(tmp_path: Path, quantized: Path, precision: str) -> None:
    with pytest.raises(InputError, match="wants the fp32 export"):
        build_bundle(quantized, tmp_path / "b", BuildOptions(runtime="onnxruntime", precision=precision), QUIET)


def test_int8_wants_calibration_and_calibration_wants_int8(tmp_path: Path, quantized: Path, folder: Path) -> None:
    onnx = painter(tmp_path / "model.onnx", hard=False)
    with pytest.raises(InputError, match="--calibration DIR"):
        build_bundle(onnx, tmp_path / "b", BuildOptions(runtime="onnxruntime", precision="int8"), QUIET)
    with pytest.raises(InputError, match="serves --int8 alone"):
        BuildOptions(precision="fp16", calibration=folder)
    with pytest.raises(InputError, match="quantized already"):
        options = BuildOptions(runtime="onnxruntime", precision="int8", calibration=folder)
        build_bundle(quantized, tmp_path / "b", options, QUIET)


def test_an_fp16_network_is_not_quantized(tmp_path: Path, folder: Path) -> None:
    onnx = painter(tmp_path / "model.onnx", hard=False)
    onnx.write_bytes(to_fp16(read_source(onnx).model).SerializeToString())
    options = BuildOptions(runtime="onnxruntime", precision="int8", calibration=folder)
    with pytest.raises(InputError, match="wants the fp32 export"):
        build_bundle(onnx, tmp_path / "b", options, QUIET)


def test_quantization_that_was_stopped_on_the_way_goes_on(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = painter(tmp_path / "model.onnx", hard=True)
    options = rtx(precision="int8", calibration=folder)
    judged, judge = [], HeldOut.drift

    def stop_after_one(held_out: HeldOut, model: bytes) -> Drift:
        if len(judged) == 1:
            raise KeyboardInterrupt
        judged.append(model)
        return judge(held_out, model)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(HeldOut, "drift", stop_after_one)
        build_bundle(onnx, tmp_path / "bundle", options, QUIET)
    again: list[bytes] = []
    monkeypatch.setattr(HeldOut, "drift", lambda held_out, model: again.append(model) or judge(held_out, model))
    build_bundle(onnx, tmp_path / "bundle", options, QUIET)
    assert again and again[0] != judged[0], "the first trial is not made again"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "model.onnx"]
