"""Which placements of Q/DQ pairs this TensorRT takes, and how fast INT8 is there.

    python benchmarks/int8_placements.py export WORK                       small networks → ONNX, one per placement
    python benchmarks/int8_placements.py build WORK [--seconds 150]        each built and timed → WORK/placements.json

`on_gpu.py` runs both. TensorRT 8.6 stops at an assertion (``chooseHigherPrecision``) on pairs that a general-purpose
quantizer places. ``export`` needs PyTorch and ONNX Runtime, ``build`` TensorRT and PyCUDA: these may be two Pythons.

The placements are those of ONNX Runtime's general-purpose quantizer, restricted to pairs that certain operations read:
``conv`` keeps the pairs that convolutions read, ``conv+mish`` also those that Mish reads, ``all-mish`` all but those.
Whichever of them stop and whichever do not say what it is that TensorRT cannot take. ``ours`` is the recipe's.
"""

import argparse
import json
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from evidence import write_json

READERS = ("relu", "mish", "gate", "residual")
"""Kinds of operations, beside convolutions, that a general-purpose quantizer gives pairs to read."""

MOVERS = ("concat", "move")
"""Kinds that it gives none: their pairs are added to the recipe's, each with a scale of its own."""

ORDER = (
    "float", "ours", "all", "conv", *(f"conv+{kind}" for kind in READERS), *(f"ours+{kind}" for kind in MOVERS),
    *(f"all-{kind}" for kind in READERS), "edge-float", "edge-ours",
)  # fmt: skip
BATCH = {"edge": 16}
"""Images at once, by what a name begins with; else one."""
PATIENCE = 20.0
"""Seconds for one network to be built and timed."""

START = 70.0
"""Seconds for the library's start, which was seen to take 31 on a busy machine."""

SIDE = 64
"""Of the small network's pictures."""
ROUNDS = 50
NO_BUILDER = 4
"""What the child process exits with."""
FOLDER = "placements"


def export(arguments: argparse.Namespace) -> None:
    """Write the ONNX of each placement."""
    from importlib.resources import files

    import onnx

    folder = arguments.work / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    edge = onnx.load(str(files("unetsharp") / "assets" / "edge.onnx"))
    for prefix, model, wanted in (("", _small_network(), ORDER), ("edge-", edge, ("float", "ours"))):
        general = _general_purpose(model, folder)
        made = {"float": model, "ours": _ours(model), "all": general, "conv": _read_by(general, ())}
        made |= {f"ours+{kind}": _ours(model, kind) for kind in MOVERS if not prefix}
        made |= {f"conv+{kind}": _read_by(general, (kind,)) for kind in READERS}
        made |= {f"all-{kind}": _read_by(general, tuple(k for k in READERS if k != kind)) for kind in READERS}
        for name in wanted:
            if name in made:
                onnx.save(made[name], folder / f"{prefix}{name}.onnx")
                print(prefix + name, sum(n.op_type == "QuantizeLinear" for n in made[name].graph.node), "pairs")


def _small_network() -> Any:
    """One of each thing that U-Net# is made of, at width 32 and 64² pixels: so little that it builds in seconds."""
    import torch
    from torch import nn

    from unetsharp.export.tracing import trace
    from unetsharp_engines.rewrites import rewrite

    def block(inputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, 32, 3, padding=1), nn.Mish(), nn.BatchNorm2d(32))

    def up(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(x, scale_factor=2, mode="bilinear")

    class OneOfEach(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU())
            self.inner = nn.Sequential(nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1))
            self.lower, self.shallow, self.deep, self.fuse = block(32), block(32), block(32), block(64)
            self.signal, self.branch, self.gate = nn.Conv2d(32, 16, 1), nn.Conv2d(32, 16, 1), nn.Conv2d(16, 1, 1)
            self.head = nn.Conv2d(32, 6, 3, 1, 1)

        def logits(self, image: torch.Tensor) -> torch.Tensor:
            x = self.stem(image)
            x = nn.functional.relu(x + self.inner(x))
            lower = self.lower(nn.functional.max_pool2d(x, 2))
            shallow, deep = self.shallow(x), self.deep(up(lower))
            gate = torch.sigmoid(self.gate(nn.functional.relu(self.signal(deep) + self.branch(shallow))))
            logits: torch.Tensor = self.head(up(self.fuse(torch.cat([gate * shallow, deep], dim=1))))
            return logits

    torch.manual_seed(0)
    return rewrite(trace(OneOfEach().eval(), size=SIDE, opset=17))[0]  # type: ignore[arg-type]  # it has what is traced


def _images(side: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).random((4, 3, side, side)).astype(np.float32)


def _side(model: Any) -> int:
    return int(model.graph.input[0].type.tensor_type.shape.dim[2].dim_value)


def _ours(model: Any, kind: str = "") -> Any:
    """The recipe's placement, and pairs before each operation of ``kind``."""
    from unetsharp_engines.quantization import Calibration, place, quantize, threshold
    from unetsharp_engines.rewrites.graph import Graph

    placement, graph = place(Graph(model)), Graph(model)
    extra = [n for node in graph.nodes if kind and _kind(graph, node) == kind for n in node.input if graph.producer(n)]
    calibration = Calibration(model, list(dict.fromkeys((*placement.tensors, *extra))))
    calibration.feed(_images(_side(model)))
    thresholds = {n: threshold(h, "minmax") for n, h in calibration.histograms.items()}
    return _with_pairs(quantize(model, placement, thresholds), kind, {name: thresholds[name] for name in extra})


def _with_pairs(model: Any, kind: str, thresholds: dict[str, float]) -> Any:
    import numpy as np

    from unetsharp_engines.rewrites.graph import Graph

    graph = Graph(model)
    readers = [node for node in graph.nodes if _kind(graph, node) == kind]
    for name, magnitude in thresholds.items():
        scale = graph.add_constant(f"{name}/extra_scale", np.array(magnitude / 127, np.float32))
        zero = graph.add_constant("int8_zero_point", np.array(0, np.int8))
        rounded = graph.add("QuantizeLinear", [name, scale, zero], f"{name}/extra/quantized")
        pair = graph.add("DequantizeLinear", [rounded, scale, zero], f"{name}/extra/dequantized")
        for node in readers:
            node.input[:] = [pair if seen == name else seen for seen in node.input]
    return graph.model()


def _general_purpose(model: Any, work: Path) -> Any:
    """ONNX Runtime's ``quantize_static`` of every convolution but the first and those of the recipe's rule 6."""
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    from unetsharp_engines.quantization import place
    from unetsharp_engines.rewrites.graph import Graph

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
        def __init__(self) -> None:
            self._images = iter(_images(_side(model)))

        def get_next(self) -> dict[str, Any] | None:
            image = next(self._images, None)
            return None if image is None else {"image": image[None]}

    ends = [x.name for x in place(Graph(model)).floats if x.reason in ("reads the image", "makes the logits")]
    source, target = work / "source.onnx", work / "general.onnx"
    onnx.save(model, source)
    quantize_static(
        source,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        nodes_to_exclude=ends,
        extra_options={"QuantizeBias": False, "ActivationSymmetric": True, "WeightSymmetric": True},
    )
    result = onnx.load(target)
    source.unlink()
    target.unlink()
    return result


def _read_by(general: Any, kinds: tuple[str, ...]) -> Any:
    """``general`` with the pairs that convolutions and ``kinds`` read; all other operations read the float value."""
    from unetsharp_engines.rewrites.graph import Graph

    graph = Graph(general)
    floats = {}
    for pair in [n for n in graph.nodes if n.op_type == "DequantizeLinear"]:
        rounding = graph.producer(pair.input[0])
        if rounding is not None:
            floats[pair.output[0]] = rounding.input[0]
    for node in graph.nodes:
        if node.op_type not in ("Conv", "QuantizeLinear") and _kind(graph, node) not in kinds:
            node.input[:] = [floats.get(name, name) for name in node.input]
    return graph.model()


def _kind(graph: Any, node: Any) -> str:
    """Which of `READERS` a node is; "" for others."""
    makers = {maker.op_type for name in node.input if (maker := graph.producer(name)) is not None}
    if node.op_type in ("Softplus", "Tanh") or (node.op_type == "Mul" and "Tanh" in makers):
        return "mish"
    if node.op_type in ("Mul", "Sigmoid") or (node.op_type == "Add" and _leads_to_sigmoid(graph, node)):
        return "gate"
    kinds = {
        "Relu": "relu", "Add": "residual", "Concat": "concat", "MaxPool": "move", "Resize": "move",
    }  # fmt: skip
    return kinds.get(node.op_type, "")


def _leads_to_sigmoid(graph: Any, node: Any) -> bool:
    """Whether a Sigmoid comes within a few operations, none of which branches."""
    for _ in range(10):
        readers = graph.consumers(node.output[0])
        if len(readers) != 1:
            return False
        (node,) = readers
        if node.op_type == "Sigmoid":
            return True
    return False


def build(arguments: argparse.Namespace) -> None:
    """Build each network in turn in one child process, which is replaced when a network takes too long."""
    end = time.monotonic() + arguments.seconds
    waiting = [name for name in ORDER if (arguments.work / FOLDER / f"{name}.onnx").is_file()]
    found: dict[str, dict[str, Any]] = {name: {"result": "no time was left"} for name in waiting}
    while waiting and time.monotonic() < end:
        for line in _child(arguments, tuple(waiting), end):
            found[waiting.pop(0)] = line
            write_json(arguments.work / "placements.json", found)
            if line.get("exit") == NO_BUILDER:
                sys.exit(NO_BUILDER)


def _child(arguments: argparse.Namespace, names: tuple[str, ...], end: float) -> Iterator[dict[str, Any]]:
    """What a child process says of ``names``, one by one, until it is done, fails or is silent too long.

    ``exit`` is then what it ended by; null if it was silent.
    """
    command = [sys.executable, __file__, "one-by-one", str(arguments.work), *names]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        selector = selectors.DefaultSelector()
        selector.register(child.stdout, selectors.EVENT_READ)
        patience, start = START, time.monotonic()
        done, status = 0, None
        while selector.select(min(patience, max(end - time.monotonic(), 1))):
            line = child.stdout.readline()
            if not line:
                status = child.wait()
                break
            print(line, end="", flush=True)
            patience, start = PATIENCE, time.monotonic()
            if line.startswith("{"):
                done += 1
                yield json.loads(line)
        if done < len(names):
            yield {"name": names[done], "result": "killed", "exit": status, "after_s": time.monotonic() - start}
        child.kill()


def one_by_one(arguments: argparse.Namespace) -> None:
    """The child: a line of JSON for each network."""
    import pycuda.autoinit  # noqa: F401 - a context for this process alone

    from unetsharp.build.flavours import TENSORRT, load

    loaded = load(TENSORRT)
    trt: Any = loaded.trt

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    log, start = Log(), time.monotonic()
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # what its bindings raise where the library made none
        print(f"TensorRT {trt.__version__} makes no builder: {'; '.join(log.errors) or error}", flush=True)
        sys.exit(NO_BUILDER)
    print(f"TensorRT {trt.__version__}, builder after {time.monotonic() - start:.1f} s", flush=True)
    cache = b""
    for name in arguments.names:
        log.errors.clear()
        line, cache = _built(loaded, builder, log, arguments.work / FOLDER / f"{name}.onnx", cache)
        print(json.dumps({"name": name, **line}), flush=True)


def _built(loaded: Any, builder: Any, log: Any, path: Path, cache: bytes) -> tuple[dict[str, Any], bytes]:
    trt, start = loaded.trt, time.monotonic()
    network = builder.create_network(loaded.network_flags())
    parser = trt.OnnxParser(network, log)
    if not parser.parse(_half(path) if loaded.is_strongly_typed else path.read_bytes()):
        return {"result": "does not parse", "error": str(parser.get_error(0).desc())}, cache
    config = builder.create_builder_config()
    config.builder_optimization_level = 0  # the quickest: what is taken, and what is not, is the question
    config.set_tactic_sources(loaded.tactic_sources())
    if not loaded.is_strongly_typed:
        config.set_flag(trt.BuilderFlag.FP16)
        if not path.stem.endswith("float"):
            config.set_flag(trt.BuilderFlag.INT8)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    batch = BATCH.get(path.stem.split("-")[0], 1)
    profile = builder.create_optimization_profile()
    shape = (batch, *network.get_input(0).shape[1:])
    profile.set_shape("image", shape, shape, shape)
    config.add_optimization_profile(profile)
    config.set_timing_cache(config.create_timing_cache(cache), ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    seconds = round(time.monotonic() - start, 1)
    if plan is None:
        return {"result": "refused", "after_s": seconds, "errors": log.errors[:3]}, cache
    content = bytes(plan)
    line = {"result": "built", "after_s": seconds, "engine_mb": round(len(content) / 1e6, 2), "batch": batch}
    return {**line, **_timed(trt, log, content, shape)}, bytes(config.get_timing_cache().serialize())


def _half(path: Path) -> bytes:
    """The network in float16, for a TensorRT that computes in the types it is given."""
    import onnx

    from unetsharp.export.precision import to_fp16

    return bytes(to_fp16(onnx.load(path)).SerializeToString())


def _timed(trt: Any, log: Any, plan: bytes, shape: tuple[int, ...]) -> dict[str, Any]:
    """Milliseconds of a batch, least and median of `ROUNDS`, and how many layers compute in which precision."""
    import numpy as np
    import pycuda.driver as cuda

    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    context.set_input_shape("image", shape)
    stream, buffers = cuda.Stream(), []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        buffers.append(cuda.mem_alloc(int(np.prod(context.get_tensor_shape(name))) * 4))
        context.set_tensor_address(name, int(buffers[-1]))
    times = []
    for _ in range(ROUNDS):
        begin, end = cuda.Event(), cuda.Event()
        begin.record(stream)
        context.execute_async_v3(stream.handle)
        end.record(stream)
        end.synchronize()
        times.append(begin.time_till(end))
    layers = json.loads(
        engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON), strict=False
    )
    return {
        "ms_least": round(min(times), 4),
        "ms_median": round(float(np.median(times)), 4),
        **_census(layers["Layers"]),
    }


def _census(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Layers by kind and the format of what they read."""
    counts: dict[str, int] = {}
    for layer in layers:
        formats = [tensor["Format/Datatype"] for tensor in layer.get("Inputs", [])][:1]
        kind = f"{layer['LayerType']} {'/'.join(f.split()[-2] if ' ' in f else f for f in formats)}"
        counts[kind] = counts.get(kind, 0) + 1
    return {"layers": dict(sorted(counts.items(), key=lambda item: -item[1]))}


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = made.add_subparsers(required=True)

    def step(name: str, function: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        added = steps.add_parser(name, help=function.__doc__)
        added.set_defaults(function=function)
        added.add_argument("work", type=Path, metavar="WORK")
        return added

    step("export", export)
    step("build", build).add_argument("--seconds", type=float, default=150.0, help="for all together")
    step("one-by-one", one_by_one).add_argument("names", nargs="+")
    return made


if __name__ == "__main__":
    given = parser().parse_args()
    given.function(given)
