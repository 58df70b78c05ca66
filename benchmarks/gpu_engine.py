"""A TensorRT engine run from CUDA graphs by PyCUDA: only as much of a runtime as timing needs."""

import atexit
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pycuda.driver as cuda
import tensorrt as trt

from unetsharp_engines.cuda.graphs import Graph

__all__ = ["GpuEngine", "Runner", "device"]

cuda.init()
_CONTEXT = cuda.Device(0).retain_primary_context()
_CONTEXT.push()
atexit.register(cuda.Context.pop)  # else PyCUDA aborts the process when it ends


class GpuEngine:
    """An engine file."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self._path = path
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))

    def runner(self, image: npt.NDArray[np.float32]) -> "Runner":
        """The engine on a batch [N, 3, H, W], as a CUDA graph. Raises RuntimeError where TensorRT refuses.

        It is loaded anew for each, since engines of TensorRT 8.6 may have one execution context only.
        """
        engine = self._runtime.deserialize_cuda_engine(self._path.read_bytes())
        if engine is None:
            raise RuntimeError(f"{self._path}: TensorRT {trt.__version__} does not load it")
        return Runner(engine, image)


class Runner:
    """One batch size of an engine: its buffers and its captured graph."""

    def __init__(self, engine: Any, image: npt.NDArray[np.float32]) -> None:
        self._engine = engine
        self.context = engine.create_execution_context()
        self.stream = cuda.Stream(flags=1)
        self._bind(engine, image)
        self._enqueue()  # once outside the capture: TensorRT sets itself up
        self.stream.synchronize()
        self._graph = Graph(self.stream, self._enqueue)

    def layers(self, runs: int = 20) -> list[dict[str, Any]]:
        """The inspector's account of every layer, with its mean time outside the graph as ``ms``."""
        milliseconds = self._profiled(runs)
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self.context
        told = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
        entries = [{"Name": entry} if isinstance(entry, str) else entry for entry in told["Layers"]]
        return [{**entry, "ms": milliseconds.get(entry["Name"])} for entry in entries]

    def run(self, times: int) -> float:
        """Run ``times`` times; milliseconds."""
        begin, end = cuda.Event(), cuda.Event()
        begin.record(self.stream)
        for _ in range(times):
            self._graph.launch()
        end.record(self.stream)
        end.synchronize()
        return float(end.time_since(begin))

    def output(self) -> npt.NDArray[np.float32]:
        """What the last run gave."""
        host = np.empty(self._output_shape, self._output_type)
        cuda.memcpy_dtoh(host, self._buffers[-1])
        return host.astype(np.float32)

    def _profiled(self, runs: int) -> dict[str, float]:
        """Mean milliseconds by layer, outside the graph."""
        profiler = _Profiler()
        self.context.profiler = profiler
        for _ in range(runs):
            self._enqueue()
            self.stream.synchronize()
        return {name: ms / runs for name, ms in profiler.milliseconds.items()}

    def _bind(self, engine: Any, image: npt.NDArray[np.float32]) -> None:
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        source, result = sorted(names, key=lambda n: engine.get_tensor_mode(n) == trt.TensorIOMode.OUTPUT)
        self.context.set_input_shape(source, image.shape)
        self._output_shape = tuple(self.context.get_tensor_shape(result))
        self._output_type = np.float16 if engine.get_tensor_dtype(result) == trt.float16 else np.float32
        self._buffers = [cuda.mem_alloc(image.nbytes), cuda.mem_alloc(4 * int(np.prod(self._output_shape)))]
        cuda.memcpy_htod(self._buffers[0], np.ascontiguousarray(image))
        for name, buffer in zip((source, result), self._buffers, strict=True):
            self.context.set_tensor_address(name, int(buffer))

    def _enqueue(self) -> None:
        if not self.context.execute_async_v3(self.stream.handle):
            raise RuntimeError("TensorRT did not run the engine")


class _Profiler(trt.IProfiler):  # type: ignore[misc]  # TensorRT ships no types
    def __init__(self) -> None:
        trt.IProfiler.__init__(self)
        self.milliseconds: dict[str, float] = {}

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        """Add to the layer's sum."""
        self.milliseconds[layer_name] = self.milliseconds.get(layer_name, 0.0) + ms


def device() -> dict[str, str]:
    """The GPU, its driver's CUDA, and TensorRT."""
    major, minor = divmod(cuda.get_driver_version(), 1000)
    return {"gpu": cuda.Device(0).name(), "cuda_driver": f"{major}.{minor // 10}", "tensorrt": trt.__version__}
