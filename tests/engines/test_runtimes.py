"""The runtimes that need no more than the deploy install, and what ONNX Runtime refuses."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from support.runtime_tester import AS_SCANNED, RuntimeTester, tiles
from support.tiny_onnx import save_tiny_onnx
from unetsharp_engines.contract import CLASSES, INPUT_NAME, OUTPUT_NAME
from unetsharp_engines.errors import InputError, MissingCapabilityError
from unetsharp_engines.model_info import METADATA_KEY, ModelInfo
from unetsharp_engines.runtimes.base import Runtime
from unetsharp_engines.runtimes.fake import FakeRuntime
from unetsharp_engines.runtimes.onnxruntime import OnnxRuntime

INFO = ModelInfo(name="tiny", encoder="none", width=1, train_size=64)


def tiny_onnx(
    batch: int | str = "n",
    side: int | str = "side",
    metadata: str | None = INFO.to_json(),
    input_name: str = INPUT_NAME,
    kind: int = TensorProto.FLOAT,
    channels: int = len(CLASSES),
) -> bytes:
    """One 3×3 convolution from image to logits, with random weights that are always the same."""
    weights = np.random.default_rng(3).normal(size=(channels, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", [input_name, "weights"], [OUTPUT_NAME], pads=[1, 1, 1, 1])],
        "tiny",
        [helper.make_tensor_value_info(input_name, kind, [batch, 3, side, side])],
        [helper.make_tensor_value_info(OUTPUT_NAME, kind, [batch, channels, side, side])],
        [numpy_helper.from_array(weights.astype(helper.tensor_dtype_to_np_dtype(kind)), "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if metadata is not None:
        helper.set_model_props(model, {METADATA_KEY: metadata})
    return model.SerializeToString()


class TestFakeRuntime(RuntimeTester):
    def make_runtime(self) -> Runtime:
        return FakeRuntime()

    @pytest.mark.parametrize("tissue_class", CLASSES, ids=lambda c: c.name)
    def test_painted_classes_come_back(self, tissue_class) -> None:
        painted = np.full((1, 32, 32, 3), FakeRuntime.COLORS[tissue_class.name], np.uint8)
        assert (FakeRuntime().labels(painted, AS_SCANNED) == tissue_class.label).all()
        assert FakeRuntime().probabilities(painted, AS_SCANNED)[:, tissue_class.channel].min() > 0.99

    def test_white_is_background(self) -> None:
        assert not FakeRuntime().labels(np.full((1, 32, 32, 3), 255, np.uint8), AS_SCANNED).any()

    def test_passes_as_any_network(self) -> None:
        assert FakeRuntime(INFO).info == INFO


class TestOnnxRuntime(RuntimeTester):
    def make_runtime(self) -> Runtime:
        return OnnxRuntime(tiny_onnx(), threads=1)

    def test_carries_its_info(self) -> None:
        assert OnnxRuntime(tiny_onnx(), threads=1).info == INFO

    def test_loads_from_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "tiny.onnx"
        path.write_bytes(tiny_onnx())
        from_file, from_bytes = OnnxRuntime(path, threads=1), OnnxRuntime(tiny_onnx(), threads=1)
        np.testing.assert_array_equal(from_file.logits(tiles(1), AS_SCANNED), from_bytes.logits(tiles(1), AS_SCANNED))

    @pytest.mark.parametrize("count", [1, 2, 3, 5])
    def test_a_fixed_batch_serves_any(self, count: int) -> None:
        fixed, free = OnnxRuntime(tiny_onnx(batch=2), threads=1), OnnxRuntime(tiny_onnx(), threads=1)
        np.testing.assert_allclose(
            fixed.logits(tiles(count), AS_SCANNED), free.logits(tiles(count), AS_SCANNED), rtol=0, atol=1e-5
        )

    def test_a_fixed_side_takes_only_that(self) -> None:
        runtime = OnnxRuntime(tiny_onnx(side=64), threads=1)
        assert runtime.labels(tiles(1, 64, 64), AS_SCANNED).shape == (1, 64, 64)
        with pytest.raises(InputError, match="exported for 64 by 64"):
            runtime.labels(tiles(1, 64, 96), AS_SCANNED)

    def test_the_network_sees_levels_over_255(self) -> None:
        """The one convolution by hand, at one inner pixel."""
        batch = tiles(1)
        model = onnx.load_from_string(tiny_onnx())
        weights = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
        patch = batch[0, 6:9, 6:9].astype(np.float64).transpose(2, 0, 1) / 255
        by_hand = (weights * patch).sum(axis=(1, 2, 3))
        seen = OnnxRuntime(tiny_onnx(), threads=1).logits(batch, AS_SCANNED)[0, :, 7, 7]
        np.testing.assert_allclose(seen, by_hand, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not an ONNX"),
        (b"not a network", "not an ONNX"),
        (tiny_onnx()[:100], "not an ONNX"),
        (tiny_onnx(metadata=None), "without unetsharp's metadata"),
        (tiny_onnx(metadata="{"), "cannot be read"),
        (tiny_onnx(input_name="x"), "wanted float32 image"),
        (tiny_onnx(channels=4), "wanted float32 image"),
        (tiny_onnx(kind=TensorProto.DOUBLE), "not an ONNX that ONNX Runtime can load"),
    ],
    ids=["empty", "text", "truncated", "foreign", "bad metadata", "other names", "four classes", "float64"],
)
def test_refuses_what_unetsharp_did_not_export(content: bytes, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "given.onnx"
    path.write_bytes(content)
    for model in (path, content):
        with pytest.raises(InputError, match=complaint) as raised:
            OnnxRuntime(model, threads=1)
        assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.onnx: no such file"):
        OnnxRuntime(tmp_path / "nowhere.onnx", threads=1)


def test_a_folder_is_no_onnx(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not an ONNX"):
        OnnxRuntime(tmp_path, threads=1)


def test_cuda_that_does_not_start_is_refused_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime goes on with its CPU provider where CUDA's libraries are missing, and only logs it."""
    on_cpu = onnxruntime.InferenceSession

    def without_cuda(model: str | bytes, options: object, providers: list[str]) -> onnxruntime.InferenceSession:
        assert providers == ["CUDAExecutionProvider"]
        return on_cpu(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", without_cuda)
    with pytest.raises(MissingCapabilityError, match="CUDAExecutionProvider does not start here"):
        OnnxRuntime(save_tiny_onnx(tmp_path / "m.onnx"), device="cuda")
