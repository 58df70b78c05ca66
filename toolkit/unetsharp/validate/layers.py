"""How much of each layer's signal is left when the network is given fewer bits, layer by layer."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unetsharp_engines.contract import INPUT_NAME
from unetsharp_engines.quantization.calibration import session, with_outputs
from unetsharp_engines.quantization.rounding import spelled_out
from unetsharp_engines.rewrites.graph import Graph, name_of

__all__ = ["LayerNoise", "layer_noise"]


@dataclass(frozen=True, kw_only=True)
class LayerNoise:
    """A convolution of both networks."""

    name: str
    precision: str
    """``int8`` where it reads INT8, else what the network is: ``fp16``, or ``float``."""
    sqnr_db: float
    """Signal to noise of its output, decibel: what its own rounding and that of all layers before it left. Infinite
    where nothing changed, NaN where the layer gives nothing but zeros."""


def layer_noise(
    exact: bytes, lossy: bytes, precision: str, inputs: Iterable[npt.NDArray[np.float32]]
) -> list[LayerNoise]:
    """Compare the outputs of all convolutions that ONNX ``exact`` and ``lossy`` share, in the order they run.

    ``inputs`` are batches as `runtimes.base.network_input` makes them. One pass over them; memory holds one batch's
    outputs of both networks. Float16 is rounded as a GPU rounds it (`rounding.spelled_out`).
    """
    import onnx

    models = [onnx.ModelProto.FromString(content) for content in (exact, lossy)]
    graphs = [Graph(model) for model in models]
    convolutions = [{n.output[0]: n for n in graph.nodes if n.op_type == "Conv"} for graph in graphs]
    shared = [value for value in convolutions[0] if value in convolutions[1]]
    sessions = [session(with_outputs(spelled_out(model), shared), None) for model in models]
    sums = np.zeros((len(shared), 2))
    for x_NCHW in inputs:
        values = (s.run(shared, {INPUT_NAME: x_NCHW}) for s in sessions)
        for row, (expected, seen) in enumerate(zip(*values, strict=True)):
            sums[row] += _power(expected), _power(seen.astype(np.float64) - expected)
    return [
        LayerNoise(
            name=name_of(convolutions[0][value]),
            precision=_precision(graphs[1], convolutions[1][value].input[0], precision),
            sqnr_db=_decibels(*sums[row].tolist()),
        )
        for row, value in enumerate(shared)
    ]


def _power(values: npt.NDArray[np.floating]) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _precision(graph: Graph, value: str, precision: str) -> str:
    """What a convolution that reads ``value`` computes in, in a network of ``precision``."""
    if precision != "int8":
        return precision
    producer = graph.producer(value)
    return "int8" if producer is not None and producer.op_type == "DequantizeLinear" else "float"


def _decibels(signal: float, noise: float) -> float:
    if not signal:
        return math.nan
    return 10.0 * math.log10(signal / noise) if noise else math.inf
