"""PyTorch, FP32 ONNX and INT8 ONNX on the CPU: the paper's configuration, one tile of 256², two threads, in turns.

    python benchmarks/cpu_speed.py [--rounds 15] [--threads 2]

Weights are random, on which time does not depend. Each contestant takes its turn once a round, in an order drawn anew:
whatever else the machine does, it does to all. A ratio is PyTorch's time over another's in the same round; the median
over the rounds counts, with quartiles. Wall time and the process's processor time are both told: where the machine is
busy with other things, the second is the steadier. ONNX Runtime then says where its time goes, operation by operation.
"""

import argparse
import copy
import json
import os
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch

from evidence import ROOT, evidence, write_json
from unetsharp.export.tracing import trace
from unetsharp_engines.contract import INPUT_NAME, TILE
from unetsharp_engines.quantization import Calibration, Placement, place, place_for_cpu, quantize, threshold
from unetsharp_engines.rewrites import rewrite, tuned
from unetsharp_engines.rewrites.graph import Graph
from unetsharp_trainer.network import UNetSharp

RESULT = ROOT / "benchmarks" / "results" / "cpu_speed.json"
PEERS = ("PyTorch FP32", "PyTorch FP32, channels last", "FP32 ONNX")
PROFILED = 5

Image = npt.NDArray[np.float32]


@dataclass
class Contestant:
    """One way to run the network."""

    run: Callable[[], object]
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


def main() -> None:
    """Measure and write."""
    arguments = _arguments()
    start = evidence("PyTorch, FP32 and INT8 ONNX on the CPU", ("torch", "onnxruntime"), ("engines", "trainer"))
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    network = UNetSharp().eval()
    image = np.random.default_rng(0).random((1, 3, TILE, TILE)).astype(np.float32)
    files = onnx_files(network, image)
    contestants = in_torch(network, image)
    contestants |= {name: in_onnxruntime(content, image, arguments.threads) for name, content in files.items()}
    take_turns(contestants, arguments.rounds)
    result = {
        **start,
        "load_average_after": round(os.getloadavg()[0], 1),
        "model": {"encoder": network.encoder_name, "width": network.width, "input": image.shape},
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "contestants": {name: told(c, contestants) for name, c in contestants.items()},
        "milliseconds_by_operation": {name: profile(c, image, arguments.threads) for name, c in files.items()},
    }
    write_json(RESULT, result)
    print(RESULT.read_text())


def onnx_files(network: UNetSharp, image: Image) -> dict[str, bytes]:
    """The networks as ONNX Runtime is given them."""
    traced = trace(network, size=TILE, opset=17)
    exported, _ = rewrite(traced)
    for_cpu = tuned("onnxruntime", exported)
    return {
        "FP32 ONNX, as traced": traced.SerializeToString(),
        "FP32 ONNX": for_cpu.SerializeToString(),
        "INT8 ONNX": in_int8(for_cpu, image, place_for_cpu).SerializeToString(),
        "INT8 ONNX, placed for TensorRT": tuned("onnxruntime", in_int8(exported, image, place)).SerializeToString(),
    }


def in_int8(model: onnx.ModelProto, image: Image, recipe: Callable[[Graph], Placement]) -> onnx.ModelProto:
    """As ``unetsharp quantize`` places it, with nothing back in float."""
    placement = recipe(Graph(model))
    calibration = Calibration(model, placement.tensors)
    calibration.feed(image)
    thresholds = {name: threshold(h, "minmax") for name, h in calibration.histograms.items()}
    return quantize(model, placement, thresholds)


def in_torch(network: UNetSharp, image: Image) -> dict[str, Contestant]:
    """Eager PyTorch, in both memory layouts."""
    layouts = {"PyTorch FP32": torch.contiguous_format, "PyTorch FP32, channels last": torch.channels_last}
    return {name: Contestant(_torch_runner(network, image, layout)) for name, layout in layouts.items()}


def _torch_runner(network: UNetSharp, image: Image, layout: torch.memory_format) -> Callable[[], object]:
    mine: UNetSharp = copy.deepcopy(network).to(memory_format=layout)
    x = torch.from_numpy(image).to(memory_format=layout)

    def run() -> object:
        with torch.inference_mode():
            return mine(x)

    return run


def in_onnxruntime(content: bytes, image: Image, threads: int) -> Contestant:
    """ONNX Runtime as `OnnxRuntime` sets it up."""
    session = onnxruntime.InferenceSession(content, options(threads), providers=["CPUExecutionProvider"])
    return Contestant(lambda: session.run(None, {INPUT_NAME: image}))


def options(threads: int) -> Any:
    """ONNX Runtime's own defaults on ``threads`` threads."""
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = threads
    chosen.log_severity_level = 3
    return chosen


def take_turns(contestants: dict[str, Contestant], rounds: int) -> None:
    """Time each contestant once a round, after one run to warm up."""
    for one in contestants.values():
        one.run()
    for _ in range(rounds):
        for one in random.sample(list(contestants.values()), len(contestants)):
            time.sleep(0.05)  # threads of the one before stop spinning
            wall, processor = time.perf_counter(), time.process_time()
            one.run()
            one.wall.append(time.perf_counter() - wall)
            one.processor.append(time.process_time() - processor)


def told(one: Contestant, all_: dict[str, Contestant]) -> dict[str, Any]:
    """Milliseconds, and how many times faster than others."""
    return {
        "ms_median": round(1e3 * statistics.median(one.wall), 1),
        "ms_least": round(1e3 * min(one.wall), 1),
        "processor_ms_median": round(1e3 * statistics.median(one.processor), 1),
        "processor_ms_least": round(1e3 * min(one.processor), 1),
        "times_faster_than": {
            name: {
                "wall": ratios(all_[name].wall, one.wall),
                "processor": ratios(all_[name].processor, one.processor),
                "least_wall": round(min(all_[name].wall) / min(one.wall), 2),
            }
            for name in PEERS
            if all_[name] is not one
        },
    }


def ratios(reference: list[float], times: list[float]) -> list[float]:
    """First quartile, median and third quartile over the rounds."""
    seen = [before / after for before, after in zip(reference, times, strict=True)]
    return [round(x, 2) for x in statistics.quantiles(seen, n=4)]


def profile(content: bytes, image: Image, threads: int) -> dict[str, float]:
    """Milliseconds of a tile by operation, the largest first, as ONNX Runtime's profiler has them."""
    profiled = options(threads)
    profiled.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        profiled.profile_file_prefix = f"{folder}/profile"
        session = onnxruntime.InferenceSession(content, profiled, providers=["CPUExecutionProvider"])
        for _ in range(PROFILED):
            session.run(None, {INPUT_NAME: image})
        events = json.loads(Path(session.end_profiling()).read_text())
    spent: dict[str, float] = defaultdict(float)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"] / 1e3 / PROFILED
    return {op: round(ms, 1) for op, ms in sorted(spent.items(), key=lambda item: -item[1])}


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
