"""The chain on the GPU, on a GPU made of numpy: order, memory, graphs, slots, errors."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.cuda_emulator import emulated_kernels
from support.fake_cuda import Gpu
from support.fake_tensorrt import (
    EmulatedKernels,
    install,
    logits_of,
    network,
)
from support.real_tiles import dsb_tiles
from support.runtime_tester import AS_SCANNED, DARKER, RuntimeTester, tiles
from support.strict_tensorrt import VERSIONS
from unetsharp_engines.contract import LABEL_OF_CHANNEL
from unetsharp_engines.cuda import device as device_module
from unetsharp_engines.cuda.batches import sizes_between, split
from unetsharp_engines.cuda.graphs import Graph
from unetsharp_engines.errors import InputError, MissingCapabilityError
from unetsharp_engines.model_info import ModelInfo
from unetsharp_engines.runtimes import tensorrt as module
from unetsharp_engines.runtimes.base import network_input
from unetsharp_engines.runtimes.tensorrt import TensorRtRuntime
from unetsharp_engines.stain import StainPlan

INFO = ModelInfo(name="fake", encoder="none", width=1, train_size=256)
PER_TILE = StainPlan(DARKER.transform, per_tile=True)
ENGINES = [b"logits float", b"taps half"]
MOST = 4
"""Largest batch of the fake engine."""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    yield install(Gpu(), monkeypatch, most=MOST)
    device_module._opened.cache_clear()


def open_engine(content: bytes = b"taps half", **options: object) -> TensorRtRuntime:
    return TensorRtRuntime(content, INFO, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", ENGINES, ids=lambda content: content.decode())
class TestOnTheFake(RuntimeTester):
    tolerance = 5e-3  # float16 in and out; a stain transform in float32 may truncate to the level below

    @pytest.fixture(autouse=True)
    def _content(self, gpu: Gpu, content: bytes) -> None:
        self.content = content

    def make_runtime(self) -> TensorRtRuntime:
        return open_engine(self.content)


class TestVersions:
    @pytest.mark.parametrize("version", VERSIONS)
    def test_each_has_its_own_way_to_contexts(self, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
        gpu = install(Gpu(), monkeypatch, most=MOST, tensorrt_version=version)
        name, number = version.split()
        with open_engine(b"taps half shared", name=name) as runtime:
            assert f"{runtime.version}.".startswith(f"{number}.")
            for _ in range(3):
                assert runtime.labels(tiles(6), PER_TILE).shape == (6, 64, 64)  # batches of 4 and 2, on two slots
                assert runtime.labels(tiles(4), PER_TILE).shape == (4, 64, 64)
            assert gpu.contexts == 4
            assert len(runtime._engine._copies) == 1

    @pytest.mark.parametrize(("version", "copies"), [("tensorrt 8.6", 4), ("tensorrt 10.3", 1), ("tensorrt 11.4", 1)])
    def test_only_old_engines_that_were_not_built_to_share_are_loaded_again(
        self, monkeypatch: pytest.MonkeyPatch, version: str, copies: int
    ) -> None:
        gpu = install(Gpu(), monkeypatch, most=MOST, tensorrt_version=version)
        content = b"taps half"
        with open_engine(content) as runtime:
            for count in (6, 4, 6, 4):  # batches of 4 and 2, both on either slot
                runtime.labels(tiles(count), PER_TILE)
            assert (gpu.contexts, gpu.graphs, len(runtime._engine._copies)) == (4, 4, copies)
            kept = content in vars(runtime._engine).values()
            assert kept == (copies > 1), "the file's bytes stay in memory only where copies may be loaded"

    @pytest.mark.parametrize("version", VERSIONS)
    def test_each_says_why_it_refuses_an_engine(self, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
        install(Gpu(), monkeypatch, most=MOST, tensorrt_version=version)
        with pytest.raises(InputError, match=r"refuses it here \(the engine brings host code\)"):
            open_engine(b"taps with host code", name=version.split()[0])
        open_engine(b"taps with host code", name=version.split()[0], host_code=True).close()

    def test_rtx_is_captured_where_it_says_it_can_be(self, gpu: Gpu) -> None:
        with open_engine(name="tensorrt-rtx", slots=1) as runtime:
            expected = np.concatenate([runtime.labels(tile[None], PER_TILE) for tile in tiles(2)])
            assert gpu.graphs == 1
            gpu.launches = []
            np.testing.assert_array_equal(runtime.labels(tiles(2), PER_TILE), expected)
            assert "graph" not in gpu.launches
            assert list(runtime.stage_seconds(tiles(2), PER_TILE)) == [
                "copy in",
                "stain",
                "network",
                "finish",
                "copy out",
            ]


class TestBatches:
    @given(st.integers(1, 64), st.integers(0, 64), st.integers(1, 500))
    def test_every_tile_is_in_one_batch_of_a_known_size(self, least: int, more: int, count: int) -> None:
        sizes = sizes_between(least, least + more)
        batches = split(count, sizes)
        assert sum(filled for _, filled in batches) == count
        assert all(size in sizes and 1 <= filled <= size for size, filled in batches)
        assert all(filled == size for size, filled in batches[:-1]), "only the last is filled up"

    @given(st.integers(1, 64), st.integers(1, 500))
    def test_filling_up_adds_a_third_at_most(self, most: int, count: int) -> None:
        ran = sum(size for size, _ in split(count, sizes_between(1, most)))
        assert ran <= count * 4 / 3

    def test_sizes_are_powers_of_two_and_the_ends(self) -> None:
        assert sizes_between(1, 24) == (1, 2, 4, 8, 16, 24)
        assert sizes_between(3, 9) == (3, 4, 8, 9)
        assert sizes_between(5, 5) == (5,)

    def test_by_hand(self) -> None:
        sizes = sizes_between(1, 64)
        assert split(129, sizes) == [(64, 64), (64, 64), (1, 1)]
        assert split(33, sizes) == [(32, 32), (1, 1)]
        assert split(50, sizes) == [(64, 50)]
        assert split(1, sizes_between(8, 16)) == [(8, 1)]


class TestChain:
    @pytest.mark.parametrize("count", [1, 3, 4, 5, 11])
    def test_many_tiles_are_as_one_by_one(self, gpu: Gpu, count: int) -> None:
        batch = tiles(count)
        with open_engine() as runtime:
            together = runtime.labels(batch, PER_TILE)
            apart = np.concatenate([runtime.labels(tile[None], PER_TILE) for tile in batch])
        np.testing.assert_array_equal(together, apart)

    def test_each_tile_has_its_own_stain_or_the_plans(self, gpu: Gpu) -> None:
        batch = dsb_tiles()  # the last is all but empty: it falls back
        with open_engine(b"logits float") as runtime:
            inside = runtime.logits(batch, PER_TILE)
            before = runtime.logits(PER_TILE.apply(batch), AS_SCANNED)
        np.testing.assert_allclose(inside, before, rtol=0, atol=5e-3 * np.ptp(before))

    def test_graphs_are_captured_once_a_size_and_replayed(self, gpu: Gpu) -> None:
        with open_engine(slots=1) as runtime:
            runtime.labels(tiles(2), PER_TILE)
            captured, gpu.launches = gpu.graphs, []
            runtime.labels(tiles(2), PER_TILE)
        assert captured == 1
        assert gpu.launches == ["graph", "copy in", "estimate", "apply", "network", "finish", "copy out"]

    def test_one_transform_for_all_is_not_estimated(self, gpu: Gpu) -> None:
        with open_engine(slots=1, captured=False) as runtime:
            runtime.labels(tiles(2), DARKER)
        assert gpu.launches == ["copy in", "apply", "network", "finish", "copy out"]
        assert gpu.graphs == 0

    def test_one_graph_serves_every_transform(self, gpu: Gpu) -> None:
        with open_engine(b"logits float", slots=1) as runtime:
            seen = [runtime.logits(tiles(1), plan) for plan in (AS_SCANNED, DARKER, AS_SCANNED)]
            assert gpu.graphs == 1
        np.testing.assert_array_equal(seen[0], seen[2])
        assert np.abs(seen[0] - seen[1]).max() > 0

    def test_slots_work_while_others_wait(self, gpu: Gpu) -> None:
        with open_engine() as runtime:
            first = runtime._start(tiles(MOST), AS_SCANNED, module.Wanted.LABELS)
            second = runtime._start(tiles(MOST), AS_SCANNED, module.Wanted.LABELS)
            assert sum(len(stream.waiting) > 0 for stream in gpu.streams.values()) == 2
            assert (runtime._finished(second) == runtime._finished(first)).all()

    def test_a_stream_of_batches_is_as_each_alone(self, gpu: Gpu) -> None:
        batches = [tiles(count) for count in (4, 1, 9, 2)]
        with open_engine() as runtime:
            seen = [*runtime.probabilities_of(iter(batches), PER_TILE), *runtime.labels_of(iter(batches), PER_TILE)]
            alone = [ask(batch, PER_TILE) for ask in (runtime.probabilities, runtime.labels) for batch in batches]
        for one, other in zip(seen, alone, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_the_next_batch_runs_while_one_is_looked_at(self, gpu: Gpu) -> None:
        with open_engine() as runtime:
            stream = runtime.probabilities_of([tiles(1)] * 3, AS_SCANNED)
            next(stream)
            assert any(stream.waiting for stream in gpu.streams.values())
            alone = runtime.labels(tiles(9), AS_SCANNED)  # takes slots that are under way
            assert alone.shape == (9, 64, 64)
            np.testing.assert_array_equal(next(stream), next(stream))

    def test_stages_are_timed(self, gpu: Gpu) -> None:
        with open_engine() as runtime:
            seconds = runtime.stage_seconds(tiles(3), PER_TILE)
            with pytest.raises(InputError, match="more than one batch"):
                runtime.stage_seconds(tiles(5), PER_TILE)
        assert list(seconds) == ["copy in", "stain", "network", "finish", "copy out"]
        assert set(seconds.values()) == {0.001}  # the fake says 20 ms for 20 runs


class TestWithTheRealKernels:
    """The kernels' own sources, run on the CPU: what the runtime passes them is what they take."""

    @pytest.fixture(params=[b"logits float", b"logits half", b"taps float", b"taps half"], ids=lambda c: c.decode())
    def runtime(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[TensorRtRuntime]:
        kernels = EmulatedKernels(emulated_kernels(monkeypatch))
        gpu = install(Gpu(), monkeypatch, most=MOST)
        monkeypatch.setattr(module, "load_kernels", lambda _: kernels)
        self.tailless = b"taps" in request.param
        with open_engine(request.param) as runtime:
            yield runtime
        assert gpu.blocks == {}

    @pytest.mark.parametrize("plan", [AS_SCANNED, DARKER, PER_TILE], ids=["as scanned", "darker", "per tile"])
    def test_the_chain_is_the_cpus(self, runtime: TensorRtRuntime, plan: StainPlan) -> None:
        batch = dsb_tiles()[:3, 32:96, 32:128]
        expected = logits_of(network(network_input(batch, plan), tailless=self.tailless), tailless=self.tailless)
        spread = np.ptp(expected)
        assert np.abs(runtime.logits(batch, plan) - expected).mean() < 1e-3 * spread
        shares = np.exp(expected - expected.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        probabilities = runtime.probabilities(batch, plan)
        assert np.abs(probabilities - shares).mean() < 5e-3
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=0, atol=1e-5)
        assert (runtime.labels(batch, plan) == LABEL_OF_CHANNEL[expected.argmax(axis=1)]).mean() > 0.99


class TestCleaning:
    def assert_clean(self, gpu: Gpu) -> None:
        assert (gpu.blocks, gpu.pinned) == ({}, set())
        assert (gpu.graphs, gpu.templates, gpu.contexts) == (0, 0, 0)
        assert gpu.entered.depth == 0

    def test_closing_frees_everything(self, gpu: Gpu) -> None:
        with open_engine() as runtime:
            for plan in (AS_SCANNED, PER_TILE):
                for ask in (runtime.labels, runtime.probabilities, runtime.logits):
                    ask(tiles(5), plan)
            runtime.stage_seconds(tiles(1), PER_TILE)
            runtime._start(tiles(4), AS_SCANNED, module.Wanted.LABELS)  # never collected
        self.assert_clean(gpu)

    def test_nothing_grows(self, gpu: Gpu) -> None:
        with open_engine() as runtime:
            for _ in range(2):
                runtime.labels(tiles(9), PER_TILE)  # three batches on two slots: now both have seen both sizes
            before = gpu.used, len(gpu.pinned), gpu.graphs, gpu.contexts
            for _ in range(20):
                runtime.labels(tiles(9), PER_TILE)
            assert (gpu.used, len(gpu.pinned), gpu.graphs, gpu.contexts) == before

    def test_what_does_not_fit_is_told_with_the_batch_that_would(self, gpu: Gpu) -> None:
        with open_engine():
            needed = gpu.used
        gpu.total = needed * 3 // 4
        with pytest.raises(
            MissingCapabilityError, match=r"up to 4 tiles need .* a batch of [12] would fit: build"
        ) as told:
            open_engine()
        assert "\n" not in str(told.value)
        gpu.total = 1 << 10
        with pytest.raises(MissingCapabilityError, match="free; not even one tile would fit: close other programs"):
            open_engine()
        self.assert_clean(gpu)

    def test_memory_that_runs_out_later_is_told_too(self, gpu: Gpu) -> None:
        with open_engine() as runtime:
            runtime.labels(tiles(1), AS_SCANNED)
            gpu.total = gpu.used
            with pytest.raises(MissingCapabilityError, match="a batch of 3 would fit: build the engine"):
                runtime.probabilities(tiles(1), AS_SCANNED)
            assert runtime.labels(tiles(1), AS_SCANNED).shape == (1, 64, 64)
        self.assert_clean(gpu)

    def test_a_refused_engine_leaves_nothing(self, gpu: Gpu) -> None:
        with pytest.raises(InputError, match=r"bundle: .*incompatible device.*unetsharp build-engine") as told:
            open_engine(b"for another GPU", source="bundle")
        assert "\n" not in str(told.value)
        self.assert_clean(gpu)

    def test_host_code_runs_where_it_is_allowed(self, gpu: Gpu) -> None:
        with pytest.raises(InputError, match="host code"):
            open_engine(b"taps with host code")
        open_engine(b"taps with host code", host_code=True).close()
        self.assert_clean(gpu)

    def test_a_failed_capture_frees_the_stream(self, gpu: Gpu) -> None:
        device = device_module.open_device()
        with device.entered():
            stream = device.cuda.Stream(flags=1)

            def fail() -> None:
                raise ValueError("in the middle")

            with pytest.raises(ValueError, match="in the middle"):
                Graph(stream, fail)
            assert stream.captured is None


@contextmanager
def held_elsewhere(lock: AbstractContextManager[bool]) -> Iterator[None]:
    """Another thread holds ``lock``."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    yield
    done.set()
    thread.join()


class TestProcess:
    def test_threads_take_turns(self, gpu: Gpu) -> None:
        batch = tiles(6)
        results: list[object] = []
        with open_engine() as runtime:
            expected = runtime.labels(batch, PER_TILE)

            def work() -> None:
                for _ in range(5):
                    results.append((runtime.labels(batch, PER_TILE) == expected).all())

            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert results == [True] * 20

    def test_a_forked_child_is_told(self, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
        runtime = open_engine()
        pid = os.getpid()
        with monkeypatch.context() as patch, held_elsewhere(runtime._lock):
            patch.setattr(os, "getpid", lambda: pid + 1)
            with pytest.raises(MissingCapabilityError, match="CUDA survives no fork: open networks in the child"):
                runtime.labels(tiles(1), AS_SCANNED)
            runtime.close()
            assert gpu.blocks, "the parent's memory is not the child's to free"
            with pytest.raises(MissingCapabilityError, match="CUDA survives no fork"):
                open_engine()
        runtime.labels(tiles(1), AS_SCANNED)
        runtime.close()

    def test_sides_the_engine_was_not_built_for(self, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
        with open_engine() as runtime:
            monkeypatch.setattr(runtime._engine, "least", (1, 3, 256, 256))
            monkeypatch.setattr(runtime._engine, "most", (4, 3, 256, 256))
            with pytest.raises(InputError, match="built for 256 by 256 pixels"):
                runtime.labels(tiles(1), AS_SCANNED)

    @pytest.mark.parametrize(
        ("missing", "says"),
        [
            ("pycuda.driver", r"pycuda.*pip install 'unetsharp\[gpu\]'"),
            ("cuda.bindings.driver", r"cuda.*pip install 'unetsharp\[gpu\]'"),
            ("tensorrt", "tensorrt cannot be loaded here"),
        ],
    )
    def test_what_is_missing_is_told_in_one_line(
        self, gpu: Gpu, monkeypatch: pytest.MonkeyPatch, missing: str, says: str
    ) -> None:
        monkeypatch.setitem(sys.modules, missing, None)
        with pytest.raises(MissingCapabilityError, match=says) as told:
            open_engine()
        assert "\n" not in str(told.value)


def test_a_driver_older_than_the_compiler_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    class DriverError(Exception):
        pass

    def refuse(cubin: bytes) -> None:
        assert cubin == b"of CUDA 13"
        raise DriverError("cuModuleLoadDataEx failed: device kernel image is invalid")

    cuda = SimpleNamespace(Error=DriverError, module_from_buffer=refuse, get_driver_version=lambda: 12060)
    monkeypatch.setattr(module, "compile_kernels", lambda arch: SimpleNamespace(cubin=f"of CUDA 13{arch}".encode()))
    with pytest.raises(MissingCapabilityError, match=r"of CUDA 12, .*image is invalid.*bindings\[all\]==12\.\*'"):
        module.load_kernels.__wrapped__(SimpleNamespace(cuda=cuda, arch=""))
