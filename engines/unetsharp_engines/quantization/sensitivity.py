"""What INT8 costs each layer by itself, for all layers in one pass over the data."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, helper

from unetsharp_engines.contract import INPUT_NAME
from unetsharp_engines.quantization.calibration import session, with_outputs
from unetsharp_engines.quantization.insertion import Pairs
from unetsharp_engines.quantization.placement import Layer, Placement
from unetsharp_engines.rewrites.graph import Graph, attributes, name_of

__all__ = ["Sensitivity"]


class Sensitivity:
    """Noise and signal at the output of every layer of a placement.

    The float network runs once, and beside each convolution a second one that is given the same float input, through
    the layer's Q/DQ pair, and INT8 weights (and whose result goes through a pair, too, where the placement says so).
    What the two differ by is the noise of that layer alone, from its rounding
    and clipping; what earlier layers' noise does to it, and what later ones make of it, is not in it.
    """

    def __init__(
        self, model: ModelProto, placement: Placement, thresholds: Mapping[str, float], *, threads: int | None = None
    ) -> None:
        """``model`` is the float network, the rest as `insertion.quantize` takes it."""
        self._layers = tuple(layer.name for layer in placement.layers)
        self._sums = np.zeros((len(self._layers), 2))
        self._outputs = [name for layer in self._layers for name in _sums_of(layer)]
        self._session = session(_probe(model, placement, thresholds, self._outputs), threads)

    def feed(self, x_NCHW: npt.NDArray[np.float32]) -> None:
        """Add a batch, as `runtimes.base.network_input` makes it."""
        sums = self._session.run(self._outputs, {INPUT_NAME: x_NCHW})
        self._sums += np.asarray(sums, np.float64).reshape(-1, 2)

    def noise_to_signal(self) -> dict[str, float]:
        """By layer: squared noise over squared signal, 0 or more; -10·log10 of it is the SQNR in decibel.

        Where a layer gave nothing but zeros it is 0 without noise and infinite with.
        """
        noise, signal = self._sums.T
        ratio = np.divide(noise, signal, out=np.where(noise > 0, np.inf, 0.0), where=signal > 0)
        return dict(zip(self._layers, ratio.tolist(), strict=True))


def _sums_of(layer: str) -> tuple[str, str]:
    return f"{layer}/probe/noise", f"{layer}/probe/signal"


def _probe(model: ModelProto, placement: Placement, thresholds: Mapping[str, float], outputs: list[str]) -> ModelProto:
    graph = Graph(with_outputs(model, outputs))
    nodes = {name_of(node): node for node in graph.nodes}
    pairs = Pairs(graph, placement, thresholds)
    for layer in placement.layers:
        _add_probe(graph, pairs, layer, nodes[layer.name])
    return graph.model()


def _add_probe(graph: Graph, pairs: Pairs, layer: Layer, conv: NodeProto) -> None:
    seen = f"{layer.name}/probe"
    graph.nodes.append(helper.make_node("Conv", pairs.inputs(layer, conv), [seen], name=seen, **attributes(conv)))
    result = layer.result or conv.output[0]
    if result != conv.output[0]:
        seen = graph.add("Relu", [seen], f"{seen}/relu")
    if layer.result is not None:
        seen = pairs.of(seen, layer.result, f"{seen}/int8")
    noise, signal = _sums_of(layer.name)
    graph.add("ReduceSumSquare", [graph.add("Sub", [seen, result], f"{seen}/error")], noise, keepdims=0)
    graph.add("ReduceSumSquare", [result], signal, keepdims=0)
