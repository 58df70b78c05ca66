"""TensorRT engines that take turns on one GPU, each run from CUDA graphs: only as much of a runtime as timing needs."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unetsharp_engines.cuda.device import open_device
from unetsharp_engines.cuda.engine import Engine, load_tensorrt
from unetsharp_engines.cuda.graphs import Graph
from unetsharp_engines.cuda.memory import Memory
from unetsharp_engines.errors import InputError
from unetsharp_engines.runtimes import tensorrt

__all__ = ["Engines", "Runner"]


class Engines:
    """Engine files, loaded. They share working memory, since one runs at a time. Closed when its block ends."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Load ``paths``. One that TensorRT refuses is told and ``left_out``."""
        with ExitStack() as closing:
            self.device = open_device()
            closing.enter_context(self.device.entered())
            self.trt = load_tensorrt("tensorrt")
            self.kernels = tensorrt.load_kernels(self.device)
            self.stream = self.device.cuda.Stream(flags=1)
            self.memory = Memory(self.device.cuda)
            closing.callback(self.memory.close)
            self.loaded: dict[str, Engine] = {}
            self.left_out: dict[str, str] = {}
            for path in paths:
                try:
                    self.loaded[path.stem] = engine = Engine(self.trt, path.read_bytes(), source=path.name)
                    closing.callback(engine.close)
                except InputError as error:
                    self.left_out[path.stem] = str(error)
                    print(f"{path.stem}: {error}", flush=True)
            self.working = self.memory.on_device(max((e.working_bytes for e in self.loaded.values()), default=0))
            self._closing = closing.pop_all()
        self._images: dict[tuple[int, bool], int] = {}

    def __enter__(self) -> "Engines":
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.synchronize()
        self._closing.close()

    def facts(self) -> dict[str, Any]:
        """The GPU, and TensorRT's version."""
        return {"gpu": self.device.name, "tensorrt": str(self.trt.__version__)}

    def runner(self, name: str, image: npt.NDArray[np.float32]) -> "Runner":
        """Engine ``name`` on the batch ``image`` [N, 3, H, W], run once.

        Raises RuntimeError, InputError or MissingCapabilityError where TensorRT does not run it, and PyCUDA's
        MemoryError.
        """
        runner = Runner(self, self.loaded[name], image)
        self._closing.callback(runner.close)
        return runner

    def image_at(self, image: npt.NDArray[np.float32], half: bool) -> int:
        """Where a batch lies on the GPU, in the type that an engine reads."""
        key = (len(image), half)
        if key not in self._images:
            content = np.frombuffer((image.astype(np.float16) if half else image).tobytes(), np.uint8)
            host = self.memory.pinned(content.nbytes)
            host[:] = content
            self._images[key] = self.memory.on_device(content.nbytes)
            self.device.cuda.memcpy_htod_async(self._images[key], host, self.stream)
        return self._images[key]


class Runner:
    """One batch size of an engine, as a CUDA graph; where it ends at the head's taps, with the kernel behind it."""

    def __init__(self, engines: Engines, engine: Engine, image: npt.NDArray[np.float32]) -> None:
        self._engines, self._engine = engines, engine
        count, _, height, width = image.shape
        self._shape = engine.output_shape(count, height, width)
        self._output = engines.memory.on_device(int(np.prod(self._shape)) * engine.output.item_bytes)
        self._labels = engines.memory.on_device(count * height * width)
        self._execution = engine.execution(
            (count, 3, height, width),
            engines.stream,
            input_at=engines.image_at(image, engine.input.half),
            output_at=self._output,
            working_at=engines.working,
        )
        self._enqueue()  # once outside the capture: TensorRT sets itself up
        engines.stream.synchronize()
        self._graph = Graph(engines.stream, self._enqueue)

    def close(self) -> None:
        """Free it. Nothing of it may still run."""
        self._graph.close()
        self._execution.close()

    def run(self, times: int) -> float:
        """Run ``times`` times; milliseconds."""
        cuda, stream = self._engines.device.cuda, self._engines.stream
        begin, end = cuda.Event(), cuda.Event()
        begin.record(stream)
        for _ in range(times):
            self._graph.launch()
        end.record(stream)
        end.synchronize()
        return float(begin.time_till(end))

    def output(self) -> npt.NDArray[np.float32]:
        """What the engine gave last: logits, or taps."""
        host = self._engines.memory.pinned(int(np.prod(self._shape)) * self._engine.output.item_bytes)
        self._engines.device.cuda.memcpy_dtoh_async(host, self._output, self._engines.stream)
        self._engines.stream.synchronize()
        kind = np.float16 if self._engine.output.half else np.float32
        return np.asarray(host.view(kind).reshape(self._shape), np.float32)

    def layers(self, runs: int = 20) -> list[dict[str, Any]]:
        """The inspector's account of every layer, with its mean time outside the graph as ``ms``."""
        trt, context = self._engines.trt, self._execution._context
        milliseconds = self._profiled(context, runs)
        inspector = self._engine._engine.create_engine_inspector()
        inspector.execution_context = context
        told = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON), strict=False)
        entries = [{"Name": entry} if isinstance(entry, str) else entry for entry in told["Layers"]]
        return [{**entry, "ms": milliseconds.get(entry["Name"])} for entry in entries]

    def _profiled(self, context: Any, runs: int) -> dict[str, float]:
        """Mean milliseconds by layer."""
        context.profiler = profiler = _profiler(self._engines.trt)
        for _ in range(runs):
            self._execution.enqueue(self._engines.stream)
            self._engines.stream.synchronize()
        return {name: ms / runs for name, ms in profiler.milliseconds.items()}

    def _enqueue(self) -> None:
        self._execution.enqueue(self._engines.stream)
        if self._engine.is_tailless:
            count, channels, height, width = self._shape
            self._engines.kernels.finish(
                self._output,
                self._labels,
                n=count,
                channels=channels,
                height=height,
                width=width,
                half=self._engine.output.half,
                margin=0,
                stream=self._engines.stream,
            )


def _profiler(trt: Any) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc]  # its base is known only at run time
        """Sums up what each layer took."""

        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.milliseconds: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            """Called by TensorRT."""
            self.milliseconds[layer_name] = self.milliseconds.get(layer_name, 0.0) + ms

    return Profiler()
