"""A GPU made of numpy, with the parts of PyCUDA, cuda.bindings and TensorRT that the runtime calls.

Work is done when it is waited for, not when it is enqueued: what reads a result too early reads garbage. Every call
needs the context to be this thread's, memory is counted, and what is freed cannot be used: the fake raises where a
GPU would corrupt memory in silence.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

GARBAGE = 0xCD
ALIGNMENT = 256
Bytes = npt.NDArray[np.uint8]


class CudaError(Exception):
    pass


class CudaMemoryError(CudaError):
    pass


@dataclass
class Gpu:
    """The state of the machine."""

    total: int = 1 << 30
    entered: threading.local = field(default_factory=threading.local)
    blocks: dict[int, npt.NDArray[np.uint8]] = field(default_factory=dict)
    pinned: set[int] = field(default_factory=set)
    streams: dict[int, "Stream"] = field(default_factory=dict)
    graphs: int = 0
    """Executable graphs that live."""
    templates: int = 0
    """Captured graphs that live."""
    contexts: int = 0
    """TensorRT execution contexts that live."""
    launches: list[str] = field(default_factory=list)
    """What ran, in order."""

    def check(self) -> None:
        assert getattr(self.entered, "depth", 0) > 0, "a CUDA call outside the context"

    @property
    def used(self) -> int:
        return sum(block.size for block in self.blocks.values())

    def at(self, address: int, shape: tuple[int, ...], kind: Any) -> npt.NDArray[Any]:
        """The array that lies at ``address``, wholly within one block. Addresses are the host's own."""
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        for start, block in self.blocks.items():
            if start <= address and address + size <= start + block.size:
                return block[address - start : address - start + size].view(kind).reshape(shape)
        raise AssertionError(f"{size} bytes at {address} are in no allocation")


class Allocation:
    def __init__(self, gpu: Gpu, size: int) -> None:
        gpu.check()
        if gpu.used + size > gpu.total:
            raise CudaMemoryError("cuMemAlloc failed: out of memory")
        memory = np.full(size + ALIGNMENT, GARBAGE, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        self._gpu, self._address = gpu, memory.ctypes.data + start
        gpu.blocks[self._address] = memory[start : start + size]

    def __int__(self) -> int:
        return self._address

    def free(self) -> None:
        self._gpu.check()
        del self._gpu.blocks[self._address]


class Pinned:
    """Pinned bytes; what the runtime gets is an array over them."""

    def __init__(self, gpu: Gpu, size: int) -> None:
        gpu.check()
        self._gpu = gpu
        self._bytes = np.full(size, GARBAGE, np.uint8)
        self.__array_interface__ = self._bytes.__array_interface__
        gpu.pinned.add(self._bytes.ctypes.data)

    def free(self) -> None:
        self._gpu.check()
        self._gpu.pinned.remove(self._bytes.ctypes.data)


class Stream:
    def __init__(self, gpu: Gpu, flags: int = 0) -> None:
        gpu.check()
        assert flags == 1, "a blocking stream waits for the others"
        self._gpu = gpu
        self.handle = id(self)
        self.waiting: list[tuple[str, Callable[[], None]]] = []
        self.captured: list[tuple[str, Callable[[], None]]] | None = None
        gpu.streams[self.handle] = self

    def put(self, name: str, work: Callable[[], None]) -> None:
        self._gpu.check()
        (self.waiting if self.captured is None else self.captured).append((name, work))

    def synchronize(self) -> None:
        self._gpu.check()
        assert self.captured is None, "waited for a stream that is being captured"
        waiting, self.waiting = self.waiting, []
        for name, work in waiting:
            self._gpu.launches.append(name)
            work()


class Event:
    def record(self, stream: Stream) -> None:
        self._stream = stream

    def synchronize(self) -> None:
        self._stream.synchronize()

    def time_till(self, other: "Event") -> float:
        return 20.0


def driver_of(gpu: Gpu) -> SimpleNamespace:
    """What ``pycuda.driver`` is, for ``gpu``."""

    class Context:
        @staticmethod
        def push() -> None:
            gpu.entered.depth = getattr(gpu.entered, "depth", 0) + 1

        @staticmethod
        def pop() -> None:
            gpu.check()
            gpu.entered.depth -= 1

    class Device:
        def __init__(self, index: int) -> None:
            assert index == 0

        count = staticmethod(lambda: 1)
        retain_primary_context = staticmethod(Context)
        name = staticmethod(lambda: "a GPU made of numpy")
        compute_capability = staticmethod(lambda: (9, 0))
        get_attribute = staticmethod(
            {"processors": 132, "clock": 1_830_000, "memory clock": 2_619_000, "bus": 5120}.__getitem__
        )  # an H100

    def copy(
        name: str, target: Callable[[], npt.NDArray[np.uint8]], source: Callable[[], npt.NDArray[np.uint8]]
    ) -> Any:
        def work() -> None:
            target()[:] = source()

        return name, work

    def host_is_pinned(array: npt.NDArray[np.uint8]) -> None:
        assert array.ctypes.data in gpu.pinned, "a copy from memory that is not pinned does not overlap"

    def to_device(address: int, host: npt.NDArray[np.uint8], stream: Stream) -> None:
        host_is_pinned(host)
        stream.put(*copy("copy in", lambda: gpu.at(address, host.shape, np.uint8), lambda: host))

    def to_host(host: npt.NDArray[np.uint8], address: int, stream: Stream) -> None:
        host_is_pinned(host)
        stream.put(*copy("copy out", lambda: host, lambda: gpu.at(address, host.shape, np.uint8)))

    return SimpleNamespace(
        Error=CudaError,
        MemoryError=CudaMemoryError,
        init=lambda: None,
        Device=Device,
        device_attribute=SimpleNamespace(
            MULTIPROCESSOR_COUNT="processors",
            CLOCK_RATE="clock",
            MEMORY_CLOCK_RATE="memory clock",
            GLOBAL_MEMORY_BUS_WIDTH="bus",
        ),
        Context=Context,
        Stream=lambda flags: Stream(gpu, flags),
        Event=Event,
        mem_alloc=lambda size: Allocation(gpu, size),
        pagelocked_empty=lambda shape, kind: np.asarray(Pinned(gpu, *shape)),
        mem_get_info=lambda: (gpu.total - gpu.used, gpu.total),
        memcpy_htod_async=to_device,
        memcpy_dtoh_async=to_host,
        module_from_buffer=lambda cubin: gpu,
    )


def bindings_of(gpu: Gpu) -> SimpleNamespace:
    """What ``cuda.bindings.driver`` is, for ``gpu``."""
    ok = SimpleNamespace(name="CUDA_SUCCESS")

    def begin(handle: int, mode: str) -> tuple[Any]:
        assert mode == "relaxed"
        assert gpu.streams[handle].captured is None
        gpu.streams[handle].captured = []
        return (ok,)

    def end(handle: int) -> tuple[Any, Any]:
        work, gpu.streams[handle].captured = gpu.streams[handle].captured, None
        gpu.templates += 1
        return ok, work

    def instantiate(work: Any, flags: int) -> tuple[Any, Any]:
        gpu.graphs += 1
        return ok, list(work)

    def launch(work: Any, handle: int) -> tuple[Any]:
        gpu.check()
        gpu.streams[handle].put("graph", lambda: None)
        for name, step in work:
            gpu.streams[handle].put(name, step)
        return (ok,)

    def destroy(counter: str) -> Callable[[Any], tuple[Any]]:
        def call(_: Any) -> tuple[Any]:
            gpu.check()
            setattr(gpu, counter, getattr(gpu, counter) - 1)
            return (ok,)

        return call

    return SimpleNamespace(
        CUresult=SimpleNamespace(CUDA_SUCCESS=ok),
        CUstreamCaptureMode=SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED="relaxed"),
        cuStreamBeginCapture=begin,
        cuStreamEndCapture=end,
        cuGraphInstantiate=instantiate,
        cuGraphLaunch=launch,
        cuGraphDestroy=destroy("templates"),
        cuGraphExecDestroy=destroy("graphs"),
    )
