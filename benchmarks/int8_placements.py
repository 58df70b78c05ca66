"""Which placements of Q/DQ pairs this TensorRT takes, and how fast INT8 is there.

    python benchmarks/int8_placements.py export WORK                       small networks → ONNX, one per placement
    python benchmarks/int8_placements.py build WORK [--seconds 150]        each built and timed → WORK/placements.json

`on_gpu.py` runs both. TensorRT 8.6 stops at an assertion (``chooseHigherPrecision``) on pairs that a general-purpose
quantizer places; `placed_networks.py` says what is tried. ``export`` needs PyTorch and ONNX Runtime, ``build``
TensorRT, PyCUDA and onnx: these may be two Pythons.
"""

import argparse
import json
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evidence import write_json
from placed_networks import ORDER, write_networks
from work_steps import WorkSteps

BATCH = {"edge": 16}
"""Images at once, by what a name begins with; else one."""
PATIENCE = 20.0
"""Seconds for one network to be built and timed."""

START = 70.0
"""Seconds for the library's start, which was seen to take 31 on a busy machine."""

ROUNDS = 50
NO_BUILDER = 4
"""What the child process exits with."""
FOLDER = "placements"


def export(arguments: argparse.Namespace) -> None:
    """Write the ONNX of each placement."""
    write_networks(arguments.work / FOLDER)


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
    steps = WorkSteps(__doc__)
    steps.add("export", export)
    steps.add("build", build).add_argument("--seconds", type=float, default=150.0, help="for all together")
    steps.add("one-by-one", one_by_one).add_argument("names", nargs="+")
    return steps.parser


if __name__ == "__main__":
    given = parser().parse_args()
    given.function(given)
