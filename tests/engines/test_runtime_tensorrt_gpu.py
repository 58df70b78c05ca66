"""The same promises on a real GPU, with engines that TensorRT builds here from networks of one layer."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from support.real_tiles import dsb_tiles
from support.runtime_tester import AS_SCANNED, DARKER, RuntimeTester, tiles
from unetsharp_engines.contract import CLASSES, LABEL_OF_CHANNEL
from unetsharp_engines.errors import MissingCapabilityError
from unetsharp_engines.model_info import ModelInfo
from unetsharp_engines.runtimes.base import network_input
from unetsharp_engines.runtimes.tensorrt import TensorRtRuntime, open_device
from unetsharp_engines.stain import StainPlan

pytestmark = pytest.mark.gpu

INFO = ModelInfo(name="one layer", encoder="none", width=1, train_size=256)
PER_TILE = StainPlan(DARKER.transform, per_tile=True)
MOST = 4
TAPS = 56
WEIGHTS = np.random.default_rng(3).standard_normal((TAPS, 3)).astype(np.float32)
KINDS = ["logits float", "logits half", "taps float", "taps half"]


@pytest.fixture(scope="module", autouse=True)
def _gpu() -> Iterator[None]:
    pytest.importorskip("tensorrt", reason="TensorRT is not installed")
    try:
        open_device()
    except MissingCapabilityError as error:
        pytest.skip(str(error))
    yield


@cache
def engine(kind: str, shared: bool = True) -> bytes:
    """One 1×1 convolution of 1 to `MOST` tiles of 32 to 256 pixels a side: to logits, or to taps at half.

    ``shared`` is whether its contexts share its profile, which TensorRT 8.6 must be told.
    """
    import tensorrt as trt

    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    half, tailless = "half" in kind, "taps" in kind
    network = builder.create_network(_flags(trt))
    image = network.add_input("image", trt.DataType.HALF if half else trt.DataType.FLOAT, (-1, 3, -1, -1))
    kernel = WEIGHTS[: TAPS if tailless else len(CLASSES)].reshape(-1, 3, 1, 1).copy()
    kernel = kernel.astype(np.float16) if half else kernel
    layer = network.add_convolution_nd(image, len(kernel), (1, 1), trt.Weights(kernel), trt.Weights())
    layer.stride_nd = (2, 2) if tailless else (1, 1)
    output = layer.get_output(0)
    output.name = "head_taps" if tailless else "logits"
    network.mark_output(output)
    if half and hasattr(trt.BuilderFlag, "FP16"):
        output.dtype = trt.DataType.HALF
    profile = builder.create_optimization_profile()
    profile.set_shape("image", (1, 3, 32, 32), (MOST, 3, 256, 256), (MOST, 3, 256, 256))
    return bytes(builder.build_serialized_network(network, _config(trt, builder, profile, half, shared)))


def _flags(trt: Any) -> int:
    members = trt.NetworkDefinitionCreationFlag.__members__
    wanted = "EXPLICIT_BATCH" if int(trt.__version__.split(".")[0]) < 10 else "STRONGLY_TYPED"
    return 1 << int(members[wanted]) if wanted in members else 0


def _config(trt: Any, builder: Any, profile: Any, half: bool, shared: bool) -> Any:
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    own = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
    config.set_tactic_sources(sum(1 << int(getattr(trt.TacticSource, name)) for name in own))
    if hasattr(trt, "PreviewFeature") and hasattr(trt.PreviewFeature, "PROFILE_SHARING_0806") and shared:
        config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
    if half and int(trt.__version__.split(".")[0]) < 10:
        config.set_flag(trt.BuilderFlag.FP16)
    return config


def expected_logits(kind: str, batch: npt.NDArray[np.uint8], plan: StainPlan) -> npt.NDArray[np.float32]:
    """The layer by numpy, from the CPU's stain normalization."""
    x = network_input(batch, plan)
    if "taps" not in kind:
        return np.einsum("oc,nchw->nohw", WEIGHTS[: len(CLASSES)], x)
    from unetsharp_engines.rewrites import HeadTail, finish

    taps = np.einsum("oc,nchw->nohw", WEIGHTS, x[:, :, ::2, ::2])
    return finish(taps, HeadTail(classes=len(CLASSES), factor=2, channels=TAPS))


@pytest.mark.parametrize("kind", KINDS)
class TestOnTheGpu(RuntimeTester):
    tolerance = 5e-3  # float16 in and out; a stain transform in float32 may truncate to the level below

    @pytest.fixture(autouse=True)
    def _kind(self, kind: str) -> None:
        self.kind = kind

    def make_runtime(self) -> TensorRtRuntime:
        return TensorRtRuntime(engine(self.kind), INFO)

    @pytest.mark.parametrize("plan", [AS_SCANNED, DARKER, PER_TILE], ids=["as scanned", "darker", "per tile"])
    def test_is_the_cpus_answer(self, runtime: TensorRtRuntime, plan: StainPlan) -> None:
        batch = dsb_tiles()
        expected = expected_logits(self.kind, batch, plan)
        difference = np.abs(runtime.logits(batch, plan) - expected)
        assert difference.mean() < 1e-3 * np.ptp(expected)
        assert difference.max() < 2e-2 * np.ptp(expected)
        labels = LABEL_OF_CHANNEL[expected.argmax(axis=1)]
        assert (runtime.labels(batch, plan) == labels).mean() > 0.99

    @pytest.mark.parametrize("count", [1, 3, 5, 11])
    def test_many_tiles_are_as_one_by_one(self, runtime: TensorRtRuntime, count: int) -> None:
        batch = tiles(count)
        apart = np.concatenate([runtime.labels(tile[None], PER_TILE) for tile in batch])
        np.testing.assert_array_equal(runtime.labels(batch, PER_TILE), apart)


class TestMemory:
    def used(self) -> int:
        device = open_device()
        with device.entered():
            return -device.free_bytes()

    def test_opening_and_closing_leaves_nothing(self) -> None:
        def round_trip() -> None:
            with TensorRtRuntime(engine("taps half"), INFO) as runtime:
                runtime.labels(tiles(9), PER_TILE)
                runtime.probabilities(tiles(9), PER_TILE)

        round_trip()
        before = self.used()
        for _ in range(10):
            round_trip()
        assert self.used() - before < 8 << 20

    def test_graphs_and_plain_launches_agree(self) -> None:
        with TensorRtRuntime(engine("taps half"), INFO, captured=False, slots=1) as plain:
            expected = plain.labels(tiles(7), PER_TILE)
        with TensorRtRuntime(engine("taps half"), INFO, slots=3) as captured:
            np.testing.assert_array_equal(captured.labels(tiles(7), PER_TILE), expected)

    def test_an_engine_that_shares_no_profile_runs_too(self) -> None:
        with TensorRtRuntime(engine("taps half"), INFO) as runtime:
            expected = runtime.labels(tiles(7), PER_TILE)
        with TensorRtRuntime(engine("taps half", shared=False), INFO) as runtime:
            np.testing.assert_array_equal(runtime.labels(tiles(7), PER_TILE), expected)

    def test_stages_are_timed(self) -> None:
        with TensorRtRuntime(engine("taps half"), INFO) as runtime:
            seconds = runtime.stage_seconds(tiles(4), PER_TILE)
        assert list(seconds) == ["copy in", "stain", "network", "finish", "copy out"]
        assert all(0 < value < 0.1 for value in seconds.values())
