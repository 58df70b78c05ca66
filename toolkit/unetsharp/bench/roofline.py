"""How much of what the machine could do is done: arithmetic and memory traffic, against their peaks."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from unetsharp_engines.errors import MissingCapabilityError

__all__ = ["Peak", "cost_of", "peak_of", "shares"]

_HALF_FMA = {"7.5": 512, "8.0": 1024, "8.6": 512, "8.7": 1024, "8.9": 512, "9.0": 2048, "12.0": 512}
"""Dense FP16 multiply-adds a clock and multiprocessor, on tensor cores, by compute capability (NVIDIA's papers)."""

_SIDE, _REPEATS = 2048, 10
_COPIED = 1 << 26
"""Bytes, more than caches hold."""


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The most that the machine does in a second."""

    macs: float | None
    """Multiply-accumulates; None where it is not known."""
    bytes: float | None
    """Moved between the processor and its memory."""
    source: str
    """Where the numbers are from."""


def cost_of(onnx: bytes) -> tuple[int, int]:
    """Multiply-accumulates of one tile, and the bytes that its nodes read and write if each runs alone."""
    import onnx as library

    from unetsharp_engines.rewrites.cost import total_cost
    from unetsharp_engines.rewrites.graph import Graph

    cost = total_cost(Graph(library.load_model_from_string(onnx)))
    return cost.macs, cost.bytes


def peak_of(device: str) -> Peak:
    """The peak of ``device`` (`Runtime.device`): a GPU's by its data sheet, the CPU's as it is reached now."""
    if device == "cpu":
        return _cpu()
    try:
        return _gpu()
    except MissingCapabilityError as lacking:  # PyTorch runs on a GPU without what engines need
        return Peak(macs=None, bytes=None, source=str(lacking))


def shares(tiles_per_s: float, macs: int, moved: int, peak: Peak) -> dict[str, float | None]:
    """Share of the peak arithmetic, and of the peak traffic, 1 being all of it.

    The second may exceed 1: what a runtime fuses, or keeps in a cache, moves less than its nodes one by one.
    """
    return {
        "compute": tiles_per_s * macs / peak.macs if peak.macs else None,
        "traffic": tiles_per_s * moved / peak.bytes if peak.bytes else None,
    }


def _cpu() -> Peak:
    return Peak(
        macs=_macs_per_s(),
        bytes=_bytes_per_s(),
        source=f"measured now, on all cores: ONNX Runtime's float32 product of {_SIDE}² matrices, "
        f"a copy of {_COPIED >> 20} MiB",
    )


def _macs_per_s() -> float:
    """Of a matrix product, with as many threads as ONNX Runtime gives a network; NumPy's follow other rules."""
    import onnx
    import onnxruntime

    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    a, b, c = (helper.make_tensor_value_info(name, kind, [_SIDE, _SIDE]) for name in "abc")
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", [a, b], [c])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    factors = {name: np.random.default_rng(i).random((_SIDE, _SIDE), np.float32) for i, name in enumerate("ab")}
    return _SIDE**3 / _least(lambda: session.run(None, factors))


def _bytes_per_s() -> float:
    """Read and written by a copy, all cores taking part: one alone does not fill the memory's bus."""
    cores = os.cpu_count() or 1
    source, target = (np.ones(_COPIED, np.uint8) for _ in range(2))  # zeros would be no memory of their own
    parts = list(zip(np.array_split(target, cores), np.array_split(source, cores), strict=True))
    with ThreadPoolExecutor(cores) as threads:
        return 2 * _COPIED / _least(lambda: list(threads.map(lambda part: np.copyto(*part), parts)))


def _least(run: Callable[[], Any]) -> float:
    """Seconds of the fastest of a few runs."""
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def _gpu() -> Peak:
    from unetsharp_engines.cuda.device import open_device

    facts = open_device().facts()
    fma = _HALF_FMA.get(facts.capability)
    return Peak(
        macs=fma * facts.multiprocessors * facts.clock_hz if fma else None,
        bytes=2.0 * facts.memory_clock_hz * facts.bus_bits / 8,
        source=f"{facts.multiprocessors} multiprocessors at {facts.clock_hz / 1e6:.0f} MHz, dense FP16 tensor cores; "
        f"memory of {facts.bus_bits} bits at {facts.memory_clock_hz / 1e6:.0f} MHz",
    )
