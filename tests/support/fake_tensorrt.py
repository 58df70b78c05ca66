"""TensorRT and our kernels, made of numpy, for the GPU of `fake_cuda`.

The runtime sees them through `strict_tensorrt`: each version refuses what the real one would.
"""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from support.fake_cuda import Gpu, Stream, bindings_of, driver_of
from support.strict_tensorrt import strict_tensorrt
from unetsharp_engines.contract import BYTES_TO_UNIT, CLASSES
from unetsharp_engines.cuda import device, reference
from unetsharp_engines.cuda.kernels import Kernels, packed
from unetsharp_engines.rewrites import HeadTail, finish
from unetsharp_engines.runtimes import tensorrt
from unetsharp_engines.stain import StainStatus, StainTransform, estimate
from unetsharp_engines.stain.target import WHITE

TAPS = 56
TAIL = HeadTail(classes=len(CLASSES), factor=2, channels=TAPS)

_Floats = npt.NDArray[np.floating[Any]]


def network(x_NCHW: _Floats, *, tailless: bool) -> npt.NDArray[np.float32]:
    """A network of one pixel and its quarter: logits, or taps at half resolution; seen mean and colour decide."""
    mix = np.random.default_rng(3).standard_normal((TAPS if tailless else len(CLASSES), 3)).astype(np.float32)
    x = x_NCHW.astype(np.float32)
    seen = x[:, :, ::2, ::2] if tailless else x + x.mean(axis=(2, 3), keepdims=True)
    out: npt.NDArray[np.float32] = np.einsum("oc,nchw->nohw", 4 * mix, seen)
    return out


def logits_of(out: npt.NDArray[np.float32], *, tailless: bool) -> npt.NDArray[np.float32]:
    return finish(out, TAIL) if tailless else out


def install(gpu: Gpu, patch: pytest.MonkeyPatch, *, most: int, tensorrt_version: str = "tensorrt 11.4") -> Gpu:
    """Let the runtime find ``gpu`` and its libraries; engines take up to ``most`` tiles.

    ``tensorrt_version`` is one of `strict_tensorrt.VERSIONS`.
    """
    libraries = {
        "pycuda.driver": driver_of(gpu),
        "cuda.bindings.driver": bindings_of(gpu),
        "tensorrt": tensorrt_of(gpu, most, tensorrt_version),
        "tensorrt_rtx": tensorrt_of(gpu, most, "tensorrt-rtx 1.7"),
    }
    for name, library in libraries.items():
        patch.setitem(sys.modules, name, library)
    for package in ("pycuda", "cuda", "cuda.bindings"):
        patch.setitem(sys.modules, package, SimpleNamespace())
    patch.setattr(tensorrt, "load_kernels", lambda _: FakeKernels(gpu))
    device._opened.cache_clear()
    return gpu


class FakeEngine:
    """An engine for 1 to ``most`` tiles of 32 to 384 pixels a side. Its bytes say what it is: ``b"taps half"``."""

    def __init__(self, gpu: Gpu, content: bytes, most: int) -> None:
        self._gpu = gpu
        self._tailless, self._half = b"taps" in content, b"half" in content
        self._output = ("head_taps", TAPS) if self._tailless else ("logits", len(CLASSES))
        self._most = most
        self.num_io_tensors = 2
        self._shares = b"shared" in content
        """Whether contexts share its profile, which 8.6 must be told to build and later versions always do."""
        self._contexts = 0

    def get_tensor_name(self, index: int) -> str:
        return ("image", self._output[0])[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 3 if name == "image" else self._output[1], -1, -1)

    def get_tensor_dtype(self, name: str) -> str:
        return "HALF" if self._half else "FLOAT"

    def get_tensor_format(self, name: str) -> str:
        return "LINEAR"

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(1, 3, 32, 32), (self._most, 3, 256, 256), (self._most, 3, 384, 384)]


WORKING_BYTES = 1 << 16


class Engine8(FakeEngine):
    """As TensorRT 8.6 has it."""

    device_memory_size = WORKING_BYTES

    def create_execution_context_without_device_memory(self) -> "FakeContext":
        return Context8(self._gpu, self)


class Engine10(FakeEngine):
    """As TensorRT 10 and 11 have it."""

    device_memory_size_v2 = WORKING_BYTES

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._shares = True

    def create_execution_context(self, strategy: Any) -> "FakeContext":
        assert strategy.name == "USER_MANAGED"
        return Context10(self._gpu, self)


class RuntimeConfig:
    """What a context of TensorRT-RTX is made by."""

    dynamic_shapes_kernel_specialization_strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy

    def get_execution_context_allocation_strategy(self) -> Any:
        return self._strategy


class EngineRtx(Engine10):
    """As TensorRT-RTX has it."""

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, config: Any) -> "FakeContext":
        assert config.get_execution_context_allocation_strategy().name == "USER_MANAGED"
        assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
        return ContextRtx(self._gpu, self)


class FakeContext:
    def __init__(self, gpu: Gpu, engine: FakeEngine) -> None:
        gpu.check()
        gpu.contexts += 1
        self._gpu, self._engine = gpu, engine
        self._at: dict[str, int] = {}
        self._enqueued = 0
        self.active_optimization_profile = 0 if engine._contexts == 0 else -1
        engine._contexts += 1

    def __del__(self) -> None:
        self._gpu.contexts -= 1

    def _give(self, address: int, size: int) -> None:
        assert size == WORKING_BYTES
        self._gpu.at(address, (size,), np.uint8)[:] = 0

    def set_optimization_profile_async(self, index: int, handle: int) -> bool:
        assert handle in self._gpu.streams
        if self._engine._shares:
            self.active_optimization_profile = index
        return self._engine._shares

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        assert self._enqueued == 0, "a captured context must not change its shape"
        self._shape = shape

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        n, _, h, w = self._shape
        _, channels, *_ = self._engine.get_tensor_shape(name)
        return (n, channels, h // 2, w // 2) if self._engine._tailless else (n, channels, h, w)

    def set_tensor_address(self, name: str, address: int) -> None:
        self._at[name] = address

    def execute_async_v3(self, handle: int) -> bool:
        stream = self._gpu.streams[handle]
        assert self._enqueued or stream.captured is None, "the first run must not be captured"
        if self.active_optimization_profile < 0:
            return False
        self._enqueued += 1
        stream.put("network", self._run)
        return True

    def _run(self) -> None:
        kind = np.float16 if self._engine._half else np.float32
        ((output, at),) = [(name, at) for name, at in self._at.items() if name != "image"]
        out = self._gpu.at(at, self.get_tensor_shape(output), kind)
        out[...] = network(self._gpu.at(self._at["image"], self._shape, kind), tailless=self._engine._tailless)


class Context8(FakeContext):
    device_memory = property(None, lambda self, address: self._give(address, WORKING_BYTES))


class Context10(FakeContext):
    def set_device_memory(self, address: int, size: int) -> None:
        self._give(address, size)


class ContextRtx(Context10):
    def is_stream_capturable(self, handle: int) -> bool:
        return handle in self._gpu.streams and self._shape[0] != 2  # what it says of two tiles


class FakeRuntime:
    """Loads what `FakeEngine` says, as an engine of class ``kind``, and refuses ``b"for another GPU"``."""

    engine_host_code_allowed = False

    def __init__(self, gpu: Gpu, most: int, kind: type[FakeEngine], log: Any) -> None:
        self._gpu, self._most, self._kind, self._log = gpu, most, kind, log

    def deserialize_cuda_engine(self, content: bytes) -> FakeEngine | None:
        self._gpu.check()
        if b"host code" in content and not self.engine_host_code_allowed:
            self._log.log(self._log.ERROR, "the engine brings host code")
            return None
        if content == b"for another GPU":
            self._log.log(self._log.ERROR, "The engine plan file is generated on an\n incompatible device")
            return None
        return self._kind(self._gpu, content, self._most)


def tensorrt_of(gpu: Gpu, most: int, which: str) -> SimpleNamespace:
    """The module of ``which``, one of `strict_tensorrt.VERSIONS`, for ``gpu``."""
    kind = {"tensorrt 8.6": Engine8, "tensorrt-rtx 1.7": EngineRtx}.get(which, Engine10)
    module, _ = strict_tensorrt(which, Runtime=lambda log: FakeRuntime(gpu, most, kind, log))
    return module


class FakeKernels:
    """`unetsharp_engines.cuda.kernels.Kernels` by the CPU's references."""

    def __init__(self, module: Gpu) -> None:
        self._gpu = module

    def workspace_bytes(self, groups: int) -> int:
        return 64 * groups

    def estimate(
        self,
        tiles: int,
        transforms: int,
        statuses: int,
        workspace: int,
        *,
        groups: int,
        pixels_per_group: int,
        fallback: int,
        stream: Stream,
    ) -> None:
        def work() -> None:
            pixels = self._gpu.at(tiles, (groups, pixels_per_group, 3), np.uint8)
            out = self._gpu.at(transforms, (groups, 12), np.float32)
            self._gpu.at(workspace, (64 * groups,), np.uint8)[:] = 1
            status = self._gpu.at(statuses, (groups,), np.int32)
            for index, tile in enumerate(pixels):
                own = estimate(tile)
                status[index] = own.status is not StainStatus.OK
                found = own.status is StainStatus.OK
                out[index] = packed(own.transform) if found else self._gpu.at(fallback, (12,), np.float32)

        stream.put("estimate", work)

    def apply(
        self,
        tiles: int,
        transforms: int,
        out: int,
        *,
        n: int,
        height: int,
        width: int,
        shared: bool,
        half: bool,
        stream: Stream,
    ) -> None:
        def work() -> None:
            pixels = self._gpu.at(tiles, (n, height, width, 3), np.uint8)
            numbers = self._gpu.at(transforms, (1 if shared else n, 12), np.float32)
            x = self._gpu.at(out, (n, 3, height, width), _kind(half))
            for index in range(n):
                transform = unpacked(numbers[0 if shared else index])
                x[index] = transform.apply(pixels[index]).transpose(2, 0, 1) * np.float32(BYTES_TO_UNIT)

        stream.put("apply", work)

    def finish(self, taps: int, out: int, *, channels: int, margin: int, **how: Any) -> None:
        assert (channels, margin) == (TAPS, 0)
        self._put("finish", taps, out, np.uint8, tailless=True, **how)

    def finish_probabilities(self, taps: int, out: int, *, channels: int, **how: Any) -> None:
        assert channels == TAPS
        self._put("finish", taps, out, np.float32, tailless=True, **how)

    def labels_of_logits(self, logits: int, out: int, *, margin: int, **how: Any) -> None:
        assert margin == 0
        self._put("finish", logits, out, np.uint8, tailless=False, **how)

    def probabilities_of_logits(self, logits: int, out: int, **how: Any) -> None:
        self._put("finish", logits, out, np.float32, tailless=False, **how)

    def _put(
        self,
        name: str,
        source: int,
        out: int,
        kind: Any,
        *,
        tailless: bool,
        n: int,
        height: int,
        width: int,
        half: bool,
        stream: Stream,
    ) -> None:
        def work() -> None:
            shape = (n, TAPS if tailless else len(CLASSES), height, width)
            logits = logits_of(self._gpu.at(source, shape, _kind(half)).astype(np.float32), tailless=tailless)
            if kind is np.uint8:
                self._gpu.at(out, (n, *logits.shape[2:]), kind)[...] = reference.labels(logits)
            else:
                self._gpu.at(out, logits.shape, kind)[...] = reference.probabilities(logits)

        stream.put(name, work)


class EmulatedKernels:
    """The real kernels, compiled for the CPU (`support.cuda_emulator`), run when the stream is waited for."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self.workspace_bytes = kernels.workspace_bytes

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(self._kernels, name)

        def enqueue(*arguments: int, stream: Stream, **how: Any) -> None:
            stream.put(name, lambda: kernel(*arguments, stream=None, **how))

        return enqueue


def unpacked(numbers: npt.NDArray[np.float32]) -> StainTransform:
    matrix = numbers[:9].reshape(3, 3).astype(np.float64)
    return StainTransform(matrix, numbers[9:] - np.log2(WHITE) * matrix.sum(axis=1))


def _kind(half: bool) -> Any:
    return np.float16 if half else np.float32
