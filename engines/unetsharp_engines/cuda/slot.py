"""One place in the pipeline: a stream, the memory of one batch, and the whole chain captured on it.

    copy in ─▶ stain: estimate, apply ─▶ network ─▶ finish ─▶ copy out

The tile never leaves the GPU between the copies. Two slots or more overlap: while one computes, another copies, and
the CPU fills a third.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from unetsharp_engines.contract import CLASSES
from unetsharp_engines.cuda.device import Device
from unetsharp_engines.cuda.engine import Engine, Execution
from unetsharp_engines.cuda.graphs import Graph
from unetsharp_engines.cuda.kernels import TRANSFORM, Kernels, packed
from unetsharp_engines.cuda.memory import Memory
from unetsharp_engines.stain import StainPlan

__all__ = ["Job", "Slot", "Wanted", "bytes_of_slot", "empty_result"]

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_FALLBACK_BYTES = 256
"""Room for the plan's transform in front of the tiles, so that one copy takes both; tiles stay aligned."""
_REPEATS = 20


class Wanted(Enum):
    """What comes out of a chain."""

    LABELS = "labels"
    """uint8 [N, H, W]"""
    PROBABILITIES = "probabilities"
    """float32 [N, 6, H, W]"""
    RAW = "raw"
    """What the engine puts out, as it is."""


@dataclass(frozen=True)
class Job:
    """What one graph does."""

    count: int
    """Tiles in the batch."""
    height: int
    width: int
    per_tile: bool
    """Each tile is normalized by its own estimate, else all by the plan's transform."""
    wanted: Wanted


@dataclass(frozen=True)
class _Result:
    """Where one kind of output is: on the GPU, and pinned on the host."""

    address: int
    host: npt.NDArray[np.uint8]


class Slot:
    """Runs one batch at a time. Call it within `Device.entered`, and from one thread at a time."""

    def __init__(self, device: Device, engine: Engine, kernels: Kernels, *, captured: bool) -> None:
        """Allocate for the engine's largest batch; PyCUDA's MemoryError where it does not fit.

        ``captured`` chains are launched as one CUDA graph; others kernel by kernel, to measure what that costs.
        """
        self._cuda = device.cuda
        self._engine = engine
        self._kernels = kernels
        self._is_captured = captured
        self._memory = Memory(device.cuda)
        self._executions: dict[tuple[int, int, int], Execution] = {}
        self._graphs: dict[object, Graph] = {}
        self._results: dict[Wanted, _Result] = {}
        self._into: npt.NDArray[Any] | None = None
        self._wanted = Wanted.LABELS
        try:
            self._allocate()
        except BaseException:
            self._memory.close()
            raise

    def start(self, job: Job, tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan, into: npt.NDArray[Any]) -> None:
        """Send tiles through the chain. The first ``len(into)`` results are in ``into`` once it was collected.

        ``tiles_NHWC`` may be fewer than ``job.count``; ``into`` has the type and shape that ``job.wanted`` says. What
        the slot was busy with is collected first.
        """
        self._collect_pending()
        self._fill(tiles_NHWC, stain)
        self._launch(job)
        self._into, self._wanted = into, job.wanted

    def collect(self, into: npt.NDArray[Any]) -> None:
        """Wait for the results that belong into ``into``, unless they are there already."""
        if self._into is into:
            self._collect_pending()

    def stage_seconds(self, job: Job, tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan) -> dict[str, float]:
        """Time on the GPU of each stage of the chain, by events around many runs of that stage alone."""
        self._collect_pending()
        self._fill(tiles_NHWC, stain)
        self._launch(job)
        return {name: self._seconds(job, name, enqueue) for name, enqueue in self._stages(job).items()}

    def close(self) -> None:
        """Wait for what runs, then free everything."""
        self._stream.synchronize()
        self._into = None
        for held in (self._graphs, self._executions):
            for thing in held.values():
                thing.close()
            held.clear()
        self._results.clear()
        self._memory.close()
        del self._stream

    def _allocate(self) -> None:
        count, _, height, width = self._engine.most
        pixels = count * height * width
        self._stream = self._cuda.Stream(flags=_NON_BLOCKING)
        self._host_in = self._memory.pinned(_FALLBACK_BYTES + 3 * pixels)
        self._fallback_at = self._memory.on_device(_FALLBACK_BYTES + 3 * pixels)
        self._tiles_at = self._fallback_at + _FALLBACK_BYTES
        self._transforms_at = self._memory.on_device(count * TRANSFORM * 4)
        self._statuses_at = self._memory.on_device(count * 4)
        self._workspace_at = self._memory.on_device(self._kernels.workspace_bytes(count))
        self._input_at = self._memory.on_device(3 * pixels * self._engine.input.item_bytes)
        self._output_at = self._memory.on_device(_result_bytes(self._engine, Wanted.RAW, count, height, width))
        self._working_at = self._memory.on_device(self._engine.working_bytes)

    def _fill(self, tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan) -> None:
        self._host_in[: TRANSFORM * 4].view(np.float32)[:] = packed(stain.transform)
        end = _FALLBACK_BYTES + tiles_NHWC.size
        np.copyto(self._host_in[_FALLBACK_BYTES:end].reshape(tiles_NHWC.shape), tiles_NHWC)

    def _collect_pending(self) -> None:
        if self._into is None:
            return
        self._stream.synchronize()
        into, self._into = self._into, None
        host = self._results[self._wanted].host
        into[...] = host[: into.nbytes].view(into.dtype).reshape(into.shape)

    def _launch(self, job: Job) -> None:
        if not self._is_capturable(job):
            self._enqueue(job)
            return
        if job not in self._graphs:
            self._enqueue(job)  # once plainly: kernels are loaded, and TensorRT takes in the shape
            self._stream.synchronize()
            self._graphs[job] = Graph(self._stream, lambda: self._enqueue(job))
        self._graphs[job].launch()

    def _is_capturable(self, job: Job) -> bool:
        return self._is_captured and self._execution(job).is_capturable(self._stream)

    def _enqueue(self, job: Job) -> None:
        for enqueue in self._stages(job).values():
            enqueue()

    def _stages(self, job: Job) -> dict[str, Callable[[], None]]:
        execution, result = self._execution(job), self._result(job.wanted)
        stages: dict[str, Callable[[], None]] = {
            "copy in": lambda: self._copy_in(job),
            "stain": lambda: self._stain(job),
            "network": lambda: execution.enqueue(self._stream),
            "finish": lambda: self._finish(job, result.address),
            "copy out": lambda: self._copy_out(job, result),
        }
        if job.wanted is Wanted.RAW:
            del stages["finish"]
        return stages

    def _copy_in(self, job: Job) -> None:
        end = _FALLBACK_BYTES + 3 * job.count * job.height * job.width
        self._cuda.memcpy_htod_async(self._fallback_at, self._host_in[:end], self._stream)

    def _stain(self, job: Job) -> None:
        if job.per_tile:
            self._kernels.estimate(
                self._tiles_at,
                self._transforms_at,
                self._statuses_at,
                self._workspace_at,
                groups=job.count,
                pixels_per_group=job.height * job.width,
                fallback=self._fallback_at,
                stream=self._stream,
            )
        self._kernels.apply(
            self._tiles_at,
            self._transforms_at if job.per_tile else self._fallback_at,
            self._input_at,
            n=job.count,
            height=job.height,
            width=job.width,
            shared=not job.per_tile,
            half=self._engine.input.half,
            stream=self._stream,
        )

    def _finish(self, job: Job, out: int) -> None:
        kernels, half, labels = self._kernels, self._engine.output.half, job.wanted is Wanted.LABELS
        n, channels, height, width = self._engine.output_shape(job.count, job.height, job.width)
        how: dict[str, Any] = {"n": n, "height": height, "width": width, "half": half, "stream": self._stream}
        if self._engine.is_tailless and labels:
            kernels.finish(self._output_at, out, channels=channels, margin=0, **how)
        elif self._engine.is_tailless:
            kernels.finish_probabilities(self._output_at, out, channels=channels, **how)
        elif labels:
            kernels.labels_of_logits(self._output_at, out, margin=0, **how)
        else:
            kernels.probabilities_of_logits(self._output_at, out, **how)

    def _copy_out(self, job: Job, result: _Result) -> None:
        size = _result_bytes(self._engine, job.wanted, job.count, job.height, job.width)
        self._cuda.memcpy_dtoh_async(result.host[:size], result.address, self._stream)

    def _execution(self, job: Job) -> Execution:
        key = job.count, job.height, job.width
        if key not in self._executions:
            self._executions[key] = self._engine.execution(
                (job.count, 3, job.height, job.width),
                self._stream,
                input_at=self._input_at,
                output_at=self._output_at,
                working_at=self._working_at,
            )
        return self._executions[key]

    def _result(self, wanted: Wanted) -> _Result:
        if wanted not in self._results:
            count, _, height, width = self._engine.most
            size = _result_bytes(self._engine, wanted, count, height, width)
            host = self._memory.pinned(size)
            address = self._output_at if wanted is Wanted.RAW else self._memory.on_device(size)
            self._results[wanted] = _Result(address, host)
        return self._results[wanted]

    def _seconds(self, job: Job, name: str, enqueue: Callable[[], None]) -> float:
        run, key = enqueue, (job, name)
        if self._is_capturable(job):
            self._graphs[key] = self._graphs.get(key) or Graph(self._stream, enqueue)
            run = self._graphs[key].launch
        before, after = self._cuda.Event(), self._cuda.Event()
        before.record(self._stream)
        for _ in range(_REPEATS):
            run()
        after.record(self._stream)
        after.synchronize()
        return float(before.time_till(after)) / 1e3 / _REPEATS


def bytes_of_slot(engine: Engine, kernels: Kernels) -> int:
    """What `Slot` takes of the GPU's memory for the engine's largest batch, with every kind of result."""
    count, _, height, width = engine.most
    pixels = count * height * width
    buffers = pixels * (3 + 3 * engine.input.item_bytes)
    results = sum(_result_bytes(engine, wanted, count, height, width) for wanted in Wanted)
    return engine.working_bytes + buffers + results + kernels.workspace_bytes(count)


def empty_result(engine: Engine, wanted: Wanted, count: int, height: int, width: int) -> npt.NDArray[Any]:
    """An array for what ``count`` tiles of these sides give."""
    return np.empty(*_form(engine, wanted, count, height, width))


def _result_bytes(engine: Engine, wanted: Wanted, count: int, height: int, width: int) -> int:
    shape, kind = _form(engine, wanted, count, height, width)
    return math.prod(shape) * np.dtype(kind).itemsize


def _form(
    engine: Engine, wanted: Wanted, count: int, height: int, width: int
) -> tuple[tuple[int, ...], type[np.generic]]:
    """Shape and type, as `Wanted` says."""
    if wanted is Wanted.LABELS:
        return (count, height, width), np.uint8
    if wanted is Wanted.PROBABILITIES:
        return (count, len(CLASSES), height, width), np.float32
    return engine.output_shape(count, height, width), np.float16 if engine.output.half else np.float32
