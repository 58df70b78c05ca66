"""Calibration in portions, interrupted and not: the histograms of what the network computes."""

import numpy as np
import onnx
import pytest

from support.small_graphs import SmallGraph
from unetsharp_engines.contract import INPUT_NAME
from unetsharp_engines.errors import InputError
from unetsharp_engines.quantization import Calibration, MagnitudeHistogram, batch_size

IMAGES = np.random.default_rng(2).random((7, 3, 8, 8)).astype(np.float32)


def model_and_tensor() -> tuple[onnx.ModelProto, str]:
    graph = SmallGraph()
    x = graph.op("Relu", graph.conv(INPUT_NAME, 3, 8, "first"))
    return graph.model(graph.conv(x, 8, 6, "head")), x


def fed(calibration: Calibration, images: np.ndarray, batch: int) -> Calibration:
    for start in range(0, len(images), batch):
        calibration.feed(images[start : start + batch])
    return calibration


def assert_equal(a: MagnitudeHistogram, b: MagnitudeHistogram) -> None:
    assert (a.exponent, a.zeros, a.largest, a.total) == (b.exponent, b.zeros, b.largest, b.total)
    np.testing.assert_array_equal(a.counts, b.counts)


def test_the_histogram_is_that_of_the_tensors_values():
    """Of the image itself, which is known without a run."""
    model, x = model_and_tensor()
    calibration = fed(Calibration(model, [INPUT_NAME, x], threads=1), IMAGES, batch=2)
    expected = MagnitudeHistogram()
    expected.add(IMAGES)
    assert_equal(calibration.histograms[INPUT_NAME], expected)
    behind_relu = calibration.histograms[x]
    assert behind_relu.total == 7 * 8 * 8 * 8
    assert 0 < behind_relu.zeros < behind_relu.total
    assert calibration.images == 7


def test_an_interrupted_run_taken_up_again_equals_a_whole_one(tmp_path):
    model, x = model_and_tensor()
    whole = fed(Calibration(model, [x], threads=1), IMAGES, batch=1)
    first = fed(Calibration(model, [x], threads=1), IMAGES[:4], batch=1)
    first.save(tmp_path / "state.npz", "key")
    second = Calibration(model, [x], threads=1)
    assert second.restore(tmp_path / "state.npz", "key")
    assert second.images == 4
    fed(second, IMAGES[4:], batch=1)
    assert_equal(second.histograms[x], whole.histograms[x])
    assert [p.name for p in tmp_path.iterdir()] == ["state.npz"]


def test_state_of_something_else_is_not_taken_up(tmp_path):
    model, x = model_and_tensor()
    fed(Calibration(model, [x], threads=1), IMAGES, batch=7).save(tmp_path / "state.npz", "key")
    other = Calibration(model, [x], threads=1)
    assert not other.restore(tmp_path / "missing.npz", "key")
    assert not other.restore(tmp_path / "state.npz", "other key")
    assert not Calibration(model, [INPUT_NAME, x], threads=1).restore(tmp_path / "state.npz", "key")
    assert other.images == 0
    assert other.histograms[x].total == 0


@pytest.mark.parametrize("damaged", [lambda b: b[:-200], lambda b: b"", lambda b: b[:999] + b"?" + b[1000:]])
def test_a_damaged_state_is_not_taken_up(tmp_path, damaged):
    model, x = model_and_tensor()
    path = tmp_path / "state.npz"
    fed(Calibration(model, [x], threads=1), IMAGES, batch=7).save(path, "key")
    path.write_bytes(damaged(path.read_bytes()))
    assert not Calibration(model, [x], threads=1).restore(path, "key")


def test_numbers_that_are_not_finite_are_refused():
    model, x = model_and_tensor()
    with pytest.raises(InputError, match="not finite"):
        Calibration(model, [x], threads=1).feed(np.full_like(IMAGES, np.inf))


def test_batches_are_as_large_as_memory_allows():
    small, x = model_and_tensor()
    assert batch_size(small, [x]) == 16
    graph = SmallGraph(side=1024)
    y = graph.op("Relu", graph.conv(INPUT_NAME, 3, 8, "first"))  # 32 MB an image
    large = graph.model(graph.conv(y, 8, 6, "head"))
    assert batch_size(large, [y]) == 8
    assert batch_size(large, [y] * 20) == 1
