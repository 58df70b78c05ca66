"""An engine of TensorRT or TensorRT-RTX: loaded, checked, and run with memory that its owner provides.

What differs between versions is in this file:

=========================  =======================  ====================  =================
                           TensorRT 8.6             TensorRT 10, 11       TensorRT-RTX
=========================  =======================  ====================  =================
Size of working memory     device_memory_size       …_v2                  …_v2
Context without it         …_without_device_memory  USER_MANAGED          by runtime config
Giving it to the context   device_memory = …        set_device_memory     set_device_memory
Contexts of one engine     1, or built to share     any number            any number
Kernels are made           by the builder           by the builder        at a shape's first run
CUDA graphs                yes                      yes                   if the context says so
=========================  =======================  ====================  =================

On a GPU, TensorRT 8.6 ran in one context (benchmarks/results/tensorrt86_h100.json). For more contexts of it, and for
the other columns, calls are held to what the bindings of 8.6, 10.3, 10.13, 11.4 and RTX 1.7 accept; what they do is
NVIDIA's documentation.
"""

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from unetsharp_engines.contract import CLASSES, INPUT_NAME, OUTPUT_NAME, TAPS, TAPS_NAME
from unetsharp_engines.errors import InputError, MissingCapabilityError

if TYPE_CHECKING:
    from unetsharp_engines.tensorrt_api import Dims, ICudaEngine, IExecutionContext, TensorRt

__all__ = ["Engine", "Execution", "Tensor", "load_tensorrt"]

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_INSTALL = {
    "tensorrt": "pip install 'unetsharp[gpu]' (on a Jetson it comes with JetPack: make the virtual environment with "
    "--system-site-packages)",
    "tensorrt-rtx": "pip install 'unetsharp[gpu,rtx]'",
}

_STRATEGIES = "ExecutionContextAllocationStrategy"
"""What TensorRT has once contexts may have their memory from outside and share a profile: from version 10 on."""

Shape = tuple[int, int, int, int]


def load_tensorrt(runtime: str) -> "TensorRt":
    """The Python module of ``runtime``, ``tensorrt`` or ``tensorrt-rtx``. Raises MissingCapabilityError without it."""
    try:
        return cast("TensorRt", importlib.import_module(_MODULES[runtime]))
    except (ImportError, OSError) as error:  # OSError: its shared libraries do not load
        raise MissingCapabilityError(f"{runtime} cannot be loaded here ({error}); {_INSTALL[runtime]}") from error


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """The engine's input or output."""

    name: str
    half: bool
    """float16, else float32."""
    shape: Shape
    """[N, C, H, W], -1 where the engine takes several."""

    @property
    def item_bytes(self) -> int:
        """Bytes of one number."""
        return 2 if self.half else 4


class Engine:
    """A network as TensorRT runs it. Call it within `Device.entered`."""

    def __init__(self, trt: "TensorRt", content: bytes, *, source: str, host_code: bool = False) -> None:
        """Load ``content``, a serialized engine: **code that runs with your rights**, so verify it first.

        ``trt`` is from `load_tensorrt`; ``source`` names the engine in the InputError that is raised where this
        TensorRT or this GPU refuses it, or its tensors are not ours. Version-compatible engines bring ``host_code``.
        """
        self._log = _recording_log(trt)
        self._runtime = trt.Runtime(self._log)
        if host_code:
            self._runtime.engine_host_code_allowed = True
        self._trt = trt
        self._source = source
        self._spare = None if hasattr(trt, _STRATEGIES) else content
        """What copies are loaded from, where contexts may need copies."""
        self._engine = self._loaded(content)
        self._copies = [self._engine]
        self.input, self.output = self._tensors()
        self.least, self.most = self._profile()
        self.working_bytes = int(_first(self._engine, "device_memory_size_v2", "device_memory_size"))
        """Memory that one execution at a time needs, for the largest batch."""

    @property
    def is_tailless(self) -> bool:
        """Whether it ends at the head's taps at half resolution, not at logits."""
        return self.output.name == TAPS_NAME

    def output_shape(self, count: int, height: int, width: int) -> Shape:
        """Shape of the output for ``count`` tiles of these sides."""
        factor = 2 if self.is_tailless else 1
        return count, self.output.shape[1], height // factor, width // factor

    def execution(self, shape: Shape, stream: Any, *, input_at: int, output_at: int, working_at: int) -> "Execution":
        """The engine set up for one input shape, to run on ``stream``, a ``pycuda.driver.Stream``.

        The addresses are of device memory that outlives it.
        """
        context = self._context(stream, working_at)
        context.set_input_shape(INPUT_NAME, shape)
        seen, wanted = tuple(context.get_tensor_shape(self.output.name)), self.output_shape(shape[0], *shape[2:])
        if seen != wanted:
            raise InputError(f"{self._source}: for input {list(shape)} it puts out {list(seen)}, not {list(wanted)}")
        context.set_tensor_address(INPUT_NAME, input_at)
        context.set_tensor_address(self.output.name, output_at)
        return Execution(context, self._log)

    def close(self) -> None:
        """Free it. Its executions must be gone."""
        self._copies.clear()
        self._spare = None
        del self._engine, self._runtime

    def _loaded(self, content: bytes) -> "ICudaEngine":
        engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise InputError(
                f"{self._source}: TensorRT {self._trt.__version__} refuses it here ({self._log.reason}); build it "
                "again on this machine with `unetsharp build-engine`"
            )
        return engine

    def _context(self, stream: Any, working_at: int) -> "IExecutionContext":
        """A context of the engine's only profile. Each has one of its own, so that graphs keep their shapes.

        An engine of TensorRT 8.6 that was not built to share its profile gives it to one context alone: then another
        copy of the engine is loaded for the next.
        """
        context = self._with_profile(self._copies[-1], stream)
        if context is None and self._spare is not None:
            self._copies.append(self._loaded(self._spare))
            context = self._with_profile(self._copies[-1], stream)
        if context is None:
            raise MissingCapabilityError(f"{self._source}: TensorRT cannot set it up here ({self._log.reason})")
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(working_at, self.working_bytes)
        else:
            context.device_memory = working_at
        return context

    def _with_profile(self, engine: "ICudaEngine", stream: Any) -> "IExecutionContext | None":
        """A new context of ``engine`` in its profile, or None where it cannot be had."""
        context: IExecutionContext | None = self._new_context(engine)
        if context is not None and context.active_optimization_profile != 0:
            context.set_optimization_profile_async(0, stream.handle)
            stream.synchronize()
        return context if context is not None and context.active_optimization_profile == 0 else None

    def _new_context(self, engine: Any) -> Any:
        """A context that waits for its working memory; each column of the table has its own way to one."""
        strategies = getattr(self._trt, _STRATEGIES, None)
        if strategies is None:
            return engine.create_execution_context_without_device_memory()
        specialization = getattr(self._trt, "DynamicShapesKernelSpecializationStrategy", None)
        if specialization is None:
            return engine.create_execution_context(strategies.USER_MANAGED)
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategies.USER_MANAGED)
        # Made at once, not in the background: a graph keeps the kernels that it was captured with.
        config.dynamic_shapes_kernel_specialization_strategy = specialization.EAGER
        return engine.create_execution_context(config)

    def _tensors(self) -> tuple[Tensor, Tensor]:
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        shapes = {name: tuple(self._engine.get_tensor_shape(name)) for name in names}
        if not _are_ours(shapes):
            raise InputError(
                f"{self._source}: its tensors are {shapes}; wanted {INPUT_NAME} [N, 3, H, W] and {OUTPUT_NAME} "
                f"[N, {len(CLASSES)}, H, W] or {TAPS_NAME}; export and build it with unetsharp"
            )
        return self._tensor(INPUT_NAME), self._tensor(next(name for name in names if name != INPUT_NAME))

    def _tensor(self, name: str) -> Tensor:
        kind = self._engine.get_tensor_dtype(name)
        layout = self._engine.get_tensor_format(name)
        types = self._trt.DataType
        if kind not in (types.HALF, types.FLOAT) or layout != self._trt.TensorFormat.LINEAR:
            raise InputError(
                f"{self._source}: {name} is {kind} in layout {layout}; wanted float16 or float32 and LINEAR, "
                "as `unetsharp build-engine` makes them"
            )
        return Tensor(name=name, half=kind == types.HALF, shape=_shape(self._engine.get_tensor_shape(name)))

    def _profile(self) -> tuple[Shape, Shape]:
        if -1 not in self.input.shape:
            return self.input.shape, self.input.shape
        least, _, most = (_shape(sides) for sides in self._engine.get_tensor_profile_shape(INPUT_NAME, 0))
        return least, most


class Execution:
    """An engine set up for one input shape and fixed addresses."""

    def __init__(self, context: "IExecutionContext", log: Any) -> None:
        self._context = context
        self._log = log

    def enqueue(self, stream: Any) -> None:
        """Put one run on ``stream``, a ``pycuda.driver.Stream``."""
        if not self._context.execute_async_v3(stream.handle):
            raise RuntimeError(f"TensorRT did not run the engine: {self._log.reason}")

    def is_capturable(self, stream: Any) -> bool:
        """Whether a graph may hold it; TensorRT-RTX cannot always, the others can."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(stream.handle))

    def close(self) -> None:
        """Free it. Nothing of it may still run."""
        del self._context


def _shape(sides: "Dims") -> Shape:
    n, c, h, w = sides
    return n, c, h, w


def _are_ours(shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether these are the tensors of an exported network, with logits or with the head's taps."""
    channels = {name: shape[1] for name, shape in shapes.items() if len(shape) == 4}
    logits = {INPUT_NAME: 3, OUTPUT_NAME: len(CLASSES)}
    taps = {INPUT_NAME: 3, TAPS_NAME: max(channels.get(TAPS_NAME, 0), TAPS * len(CLASSES))}
    return len(channels) == len(shapes) and channels in (logits, taps)


def _first(holder: Any, *names: str) -> Any:
    return next(getattr(holder, name) for name in names if hasattr(holder, name))


def _recording_log(trt: Any) -> Any:
    """A logger for TensorRT that keeps its last error, for the one line that the user gets."""

    class RecordingLog(trt.ILogger):  # type: ignore[misc]  # its base is known only at run time
        """Quiet but for errors, which it keeps."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.reason = "it gave no reason"

        def log(self, severity: Any, message: str) -> None:
            """Called by TensorRT."""
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.reason = " ".join(message.split())

    return RecordingLog()
