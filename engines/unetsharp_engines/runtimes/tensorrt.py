"""TensorRT and TensorRT-RTX: the whole chain on the GPU, through PyCUDA, replayed from CUDA graphs."""

import functools
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt

from unetsharp_engines.contract import CLASSES
from unetsharp_engines.cuda.batches import sizes_between, split
from unetsharp_engines.cuda.compiling import compile_kernels
from unetsharp_engines.cuda.device import Device, open_device
from unetsharp_engines.cuda.engine import Engine, load_tensorrt
from unetsharp_engines.cuda.kernels import Kernels
from unetsharp_engines.cuda.slot import Job, Slot, Wanted, bytes_of_slot, empty_result
from unetsharp_engines.errors import InputError, MissingCapabilityError
from unetsharp_engines.model_info import ModelInfo
from unetsharp_engines.runtimes.base import Runtime, check_tiles
from unetsharp_engines.stain import StainPlan

__all__ = ["TensorRtRuntime"]

SLOTS = 2
"""One computes while the other copies and the CPU fills and empties it."""


@dataclass(frozen=True, eq=False)
class _Started:
    """Tiles on their way."""

    result: npt.NDArray[Any]
    parts: list[tuple[Slot, npt.NDArray[Any]]]
    """Which slot fills which rows of ``result``."""


class TensorRtRuntime(Runtime):
    """An engine on the GPU: uint8 tiles in, labels or probabilities out, everything between on the device.

    Batches of any size are served by batches of few sizes, each captured in a CUDA graph when it is first seen. Safe to
    call from several threads, which take turns. The engine takes the sides that it was built for, else InputError.
    """

    def __init__(
        self,
        engine: bytes,
        info: ModelInfo,
        *,
        name: str = "tensorrt",
        source: str = "the engine",
        host_code: bool = False,
        slots: int = SLOTS,
        captured: bool = True,
    ) -> None:
        """Load ``engine``, a serialized engine whose origin was verified: **it is code that runs with your rights**.

        ``name`` is ``tensorrt`` or ``tensorrt-rtx``; ``source`` names the engine in errors; version-compatible engines
        bring ``host_code``. Fewer ``slots`` overlap less, and chains not ``captured`` are launched kernel by kernel: to
        measure what both bring.

        Raises MissingCapabilityError without a GPU, TensorRT, PyCUDA or memory enough, InputError for an engine that
        is not for this machine or not ours.
        """
        self._lock = threading.RLock()
        self._closing = ExitStack()
        self._device = open_device()
        self._source = source
        trt = load_tensorrt(name)
        super().__init__(info=info, name=name, version=str(trt.__version__), device=self._device.name)
        try:
            with self._device.entered():
                self._engine = Engine(trt, engine, source=source, host_code=host_code)
                self._closing.callback(self._engine.close)
                self._kernels = load_kernels(self._device)
                self._slots = self._new_slots(slots, captured)
        except BaseException:
            self.close()
            raise
        self._turn = cycle(self._slots)
        self._sizes = sizes_between(self._engine.least[0], self._engine.most[0])

    @property
    def batch(self) -> int:
        """The largest batch that the engine takes at once; more are split."""
        return self._sizes[-1]

    def close(self) -> None:
        """Free everything on the GPU, after what runs there. In a forked child nothing is touched."""
        if not self._device.is_of_this_process:
            return
        with self._lock, self._device.entered():
            self._closing.close()

    def probabilities_of(
        self, batches: Iterable[npt.NDArray[np.uint8]], stain: StainPlan
    ) -> Iterator[npt.NDArray[np.float32]]:
        """As `Runtime.probabilities_of`; the GPU works on the next batch while the caller looks at one."""
        return self._each(batches, stain, Wanted.PROBABILITIES)

    def labels_of(self, batches: Iterable[npt.NDArray[np.uint8]], stain: StainPlan) -> Iterator[npt.NDArray[np.uint8]]:
        """As `Runtime.labels_of`, ahead as `probabilities_of` is."""
        return self._each(batches, stain, Wanted.LABELS)

    def stage_seconds(self, tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan) -> dict[str, float]:
        """Time on the GPU of each stage from tiles to labels, by events, of one batch that the engine takes at once."""
        (size, _), *more = split(len(tiles_NHWC), self._sizes)
        if more:
            raise InputError(f"{len(tiles_NHWC)} tiles are more than one batch; this engine's sizes are {self._sizes}")
        _, height, width, _ = tiles_NHWC.shape
        job = Job(size, height, width, stain.per_tile, Wanted.LABELS)
        with self._working():
            return self._slots[0].stage_seconds(job, tiles_NHWC, stain)

    def _logits(self, tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan) -> npt.NDArray[np.float32]:
        raw = self._run(tiles_NHWC, stain, Wanted.RAW).astype(np.float32)
        if not self._engine.is_tailless:
            return raw
        from unetsharp_engines.rewrites.tail import HeadTail, finish  # loads onnx, which nothing else here needs

        return finish(raw, HeadTail(classes=len(CLASSES), factor=2, channels=raw.shape[1]))

    def _probabilities(self, tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan) -> npt.NDArray[np.float32]:
        return self._run(tiles_NHWC, stain, Wanted.PROBABILITIES)

    def _labels(self, tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan) -> npt.NDArray[np.uint8]:
        return self._run(tiles_NHWC, stain, Wanted.LABELS)

    def _run(self, tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan, wanted: Wanted) -> npt.NDArray[Any]:
        return self._finished(self._start(tiles_NHWC, stain, wanted))

    def _each(
        self, batches: Iterable[npt.NDArray[np.uint8]], stain: StainPlan, wanted: Wanted
    ) -> Iterator[npt.NDArray[Any]]:
        waiting: deque[_Started] = deque()
        for tiles_NHWC in batches:
            check_tiles(tiles_NHWC)
            waiting.append(self._start(tiles_NHWC, stain, wanted))
            if len(waiting) > 1:
                yield self._finished(waiting.popleft())
        while waiting:
            yield self._finished(waiting.popleft())

    def _start(self, tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan, wanted: Wanted) -> _Started:
        """Send tiles off; batches beyond the slots are awaited here."""
        self._check_sides(tiles_NHWC)
        count, height, width, _ = tiles_NHWC.shape
        started = _Started(empty_result(self._engine, wanted, count, height, width), [])
        with self._working():
            done = 0
            for size, filled in split(count, self._sizes):
                rows = slice(done, done + filled)
                slot, into = next(self._turn), started.result[rows]
                slot.start(Job(size, height, width, stain.per_tile, wanted), tiles_NHWC[rows], stain, into)
                started.parts.append((slot, into))
                done += filled
        return started

    def _finished(self, started: _Started) -> npt.NDArray[Any]:
        with self._working():
            for slot, into in started.parts:
                slot.collect(into)
        return started.result

    def _check_sides(self, tiles_NHWC: npt.NDArray[np.uint8]) -> None:
        least, most = self._engine.least[2:], self._engine.most[2:]
        sides = tiles_NHWC.shape[1:3]
        if not all(low <= side <= high for low, side, high in zip(least, sides, most, strict=True)):
            taken = f"{least[0]} by {least[1]}" + (f" to {most[0]} by {most[1]}" if least != most else "")
            raise InputError(f"tiles are {list(tiles_NHWC.shape)}; this engine was built for {taken} pixels")

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Have the GPU to oneself; what does not fit into its memory is told with the batch that would."""
        self._device.check_process()  # before the lock: in a forked child a thread that is gone may hold it
        with self._lock, self._device.entered():
            try:
                yield
            except self._device.cuda.MemoryError as error:
                raise self._does_not_fit(len(self._slots)) from error

    def _new_slots(self, count: int, captured: bool) -> list[Slot]:
        self._free = self._device.free_bytes()
        slots = []
        try:
            for _ in range(count):
                slots.append(Slot(self._device, self._engine, self._kernels, captured=captured))
                self._closing.callback(slots[-1].close)
        except self._device.cuda.MemoryError as error:
            raise self._does_not_fit(count) from error
        return slots

    def _does_not_fit(self, slots: int) -> MissingCapabilityError:
        free = self._free
        needed = slots * bytes_of_slot(self._engine, self._kernels)
        batch = self._engine.most[0]
        fits = min(free * batch // needed, batch - 1)
        build = f"a batch of {fits} would fit: build the engine with --batch 1,{fits},{fits}"
        return MissingCapabilityError(
            f"{self._source}: batches of up to {batch} tiles need {_gib(needed)} of GPU memory, {_gib(free)} are free; "
            + (build if fits else "not even one tile would fit: close other programs on the GPU")
        )


@functools.cache
def load_kernels(device: Device) -> Kernels:
    """The kernels on ``device``, loaded once a process. MissingCapabilityError where its driver refuses them."""
    compiled = compile_kernels(device.arch)
    try:
        return Kernels(device.cuda.module_from_buffer(compiled.cubin))
    except device.cuda.Error as error:  # drivers need not load what a newer CUDA's NVRTC compiled
        driver = device.cuda.get_driver_version() // 1000
        raise MissingCapabilityError(
            f"the driver, of CUDA {driver}, does not load the kernels ({error}); where NVRTC is of a newer CUDA, take "
            f"that of the driver's: pip install 'cuda-bindings[all]=={driver}.*'"
        ) from error


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
