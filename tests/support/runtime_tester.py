"""One tester that every runtime passes: subclass it, say how to make yours, and pytest runs the lot."""

import numpy as np
import numpy.typing as npt
import pytest

from unetsharp_engines.contract import CLASSES, LABEL_OF_CHANNEL
from unetsharp_engines.errors import InputError
from unetsharp_engines.model_info import ModelInfo
from unetsharp_engines.runtimes.base import Runtime
from unetsharp_engines.stain import IDENTITY, StainPlan, StainTransform

AS_SCANNED = StainPlan(IDENTITY)
DARKER = StainPlan(StainTransform(np.eye(3), np.full(3, -1.0)))  # half of every level


def tiles(count: int, height: int = 64, width: int = 64) -> npt.NDArray[np.uint8]:
    """Coloured noise in blocks of 8 pixels, uint8 [count, height, width, 3], always the same."""
    blocks = np.random.default_rng(7).integers(0, 256, (count, height // 8, width // 8, 3), np.uint8)
    return blocks.repeat(8, axis=1).repeat(8, axis=2)


class RuntimeTester:
    """What every runtime promises. A subclass is named ``Test…`` and overrides `make_runtime`."""

    tolerance = 1e-5
    """Largest difference of logits between a batch and its tiles one by one, relative to their range."""

    def make_runtime(self) -> Runtime:
        """A fresh runtime; the tests close it."""
        raise NotImplementedError

    @pytest.fixture
    def runtime(self):
        with self.make_runtime() as runtime:
            yield runtime

    def test_says_what_it_is(self, runtime: Runtime) -> None:
        assert isinstance(runtime.info, ModelInfo)
        assert runtime.name and runtime.version and runtime.device

    @pytest.mark.parametrize("shape", [(1, 32, 32), (3, 64, 96), (2, 256, 256)])
    def test_shapes_and_types(self, runtime: Runtime, shape: tuple[int, int, int]) -> None:
        batch = tiles(*shape)
        count, height, width = shape
        logits, probabilities = runtime.logits(batch, AS_SCANNED), runtime.probabilities(batch, AS_SCANNED)
        labels = runtime.labels(batch, AS_SCANNED)
        assert logits.shape == probabilities.shape == (count, len(CLASSES), height, width)
        assert labels.shape == shape
        assert (logits.dtype, probabilities.dtype, labels.dtype) == (np.float32, np.float32, np.uint8)
        assert np.isfinite(logits).all()

    def test_same_input_same_output(self, runtime: Runtime) -> None:
        batch = tiles(2)
        np.testing.assert_array_equal(runtime.logits(batch, AS_SCANNED), runtime.logits(batch, AS_SCANNED))

    def test_a_stream_of_batches_is_as_each_alone(self, runtime: Runtime) -> None:
        batches = [tiles(2), tiles(1), tiles(3)]
        for each, one in ((runtime.labels_of, runtime.labels), (runtime.probabilities_of, runtime.probabilities)):
            for seen, batch in zip(each(iter(batches), AS_SCANNED), batches, strict=True):
                np.testing.assert_array_equal(seen, one(batch, AS_SCANNED))

    def test_leaves_its_input_alone(self, runtime: Runtime) -> None:
        batch = tiles(2)
        runtime.labels(batch, AS_SCANNED)
        np.testing.assert_array_equal(batch, tiles(2))

    def test_takes_views(self, runtime: Runtime) -> None:
        batch = tiles(2)
        view = batch[:, ::-1, :, ::-1]
        np.testing.assert_array_equal(runtime.logits(view, AS_SCANNED), runtime.logits(view.copy(), AS_SCANNED))

    def test_a_batch_is_its_tiles(self, runtime: Runtime) -> None:
        batch = tiles(3)
        together = runtime.logits(batch, AS_SCANNED)
        apart = np.concatenate([runtime.logits(tile[None], AS_SCANNED) for tile in batch])
        np.testing.assert_allclose(together, apart, rtol=0, atol=self.tolerance * np.ptp(apart))

    def test_probabilities_are_a_distribution(self, runtime: Runtime) -> None:
        probabilities = runtime.probabilities(tiles(2), AS_SCANNED)
        assert probabilities.min() >= 0
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=0, atol=1e-5)

    def test_probabilities_are_softmax_of_logits(self, runtime: Runtime) -> None:
        logits = runtime.logits(tiles(2), AS_SCANNED).astype(np.float64)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        expected = exponentials / exponentials.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(runtime.probabilities(tiles(2), AS_SCANNED), expected, rtol=0, atol=1e-5)

    def test_labels_are_the_most_probable_class(self, runtime: Runtime) -> None:
        probabilities, labels = runtime.probabilities(tiles(2), AS_SCANNED), runtime.labels(tiles(2), AS_SCANNED)
        channel_of_label = np.argsort(LABEL_OF_CHANNEL)
        chosen = np.take_along_axis(probabilities, channel_of_label[labels][:, None], axis=1)[:, 0]
        # Equal up to rounding: where two classes tie, either will do.
        np.testing.assert_allclose(chosen, probabilities.max(axis=1), rtol=0, atol=1e-6)

    def test_stain_is_applied_first(self, runtime: Runtime) -> None:
        batch = tiles(2)
        inside, before = runtime.logits(batch, DARKER), runtime.logits(DARKER.apply(batch), AS_SCANNED)
        np.testing.assert_allclose(inside, before, rtol=0, atol=self.tolerance * np.ptp(before))
        assert np.abs(inside - runtime.logits(batch, AS_SCANNED)).max() > 0

    @pytest.mark.parametrize(
        ("unfit", "wanted"),
        [
            (tiles(1).astype(np.float32), "uint8 RGB"),
            (tiles(1)[0], r"\[N, H, W, 3\]"),
            (tiles(1)[..., :2], r"\[N, H, W, 3\]"),
            (tiles(1)[:0], "at least one"),
            (tiles(1)[:, :48], "multiples of 32"),
            (tiles(1)[:, :, :0], "multiples of 32"),
            (np.zeros((1, 416, 32, 3), np.uint8), "up to 384"),
        ],
        ids=["float", "no batch", "two channels", "none", "side 48", "side 0", "side 416"],
    )
    def test_refuses(self, runtime: Runtime, unfit: npt.NDArray[np.uint8], wanted: str) -> None:
        for ask in (runtime.logits, runtime.probabilities, runtime.labels):
            with pytest.raises(InputError, match=wanted):
                ask(unfit, AS_SCANNED)

    def test_closes_twice(self) -> None:
        runtime = self.make_runtime()
        runtime.close()
        runtime.close()
