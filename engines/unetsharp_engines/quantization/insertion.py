"""Writing a placement into a graph: weights in INT8, Q/DQ pairs where the recipe says."""

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto

from unetsharp_engines.quantization.cpu import fitting_scale, int32_bias
from unetsharp_engines.quantization.placement import Identity, Layer, Placement
from unetsharp_engines.quantization.thresholds import LEVELS
from unetsharp_engines.rewrites.graph import Graph, name_of

__all__ = ["LEAST_SCALE", "Pairs", "quantize", "quantized_weight"]

LEAST_SCALE = 2.0**-100
"""Smaller scales are raised to this: float32 must hold the scale and its reciprocal, and a product of two."""

_CHANNEL_AXIS = 0
"""Of a convolution's weights: output channels."""


def quantize(
    model: ModelProto, placement: Placement, thresholds: Mapping[str, float], *, floats: Collection[str] = ()
) -> ModelProto:
    """A copy of float ``model`` with ``placement``'s layers in INT8, except those named in ``floats``.

    ``thresholds`` gives the magnitude that INT8's largest level stands for, for each of ``placement.tensors``. Layers
    in ``floats`` keep their float weights and have no pairs, not on a residual branch either.
    """
    graph = Graph(model)
    nodes = {name_of(node): node for node in graph.nodes}
    pairs = Pairs(graph, placement, thresholds)
    for layer in placement.layers:
        if layer.name not in floats:
            conv = nodes[layer.name]
            conv.input[:] = pairs.inputs(layer, conv)
            if layer.identity is not None:
                _quantize_identity(pairs, nodes, layer.name, layer.identity)
            if layer.result is not None:
                _quantize_result(graph, pairs, layer.result)
    return graph.model()


def quantized_weight(
    weight: npt.NDArray[np.float32], scale: npt.NDArray[np.float32] | None = None
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """A convolution's weights [O, I, kh, kw] in INT8, and float32 scales [O]: each channel's largest becomes 127.

    Or what they are with the ``scale`` given, which must hold them.
    """
    if scale is None:
        largest = np.abs(weight.astype(np.float64)).reshape(len(weight), -1).max(axis=1)
        scale = np.where(largest > 0, np.maximum(largest / LEVELS, LEAST_SCALE), 1.0).astype(np.float32)
    levels = np.rint(weight / scale.astype(np.float64)[:, None, None, None])
    return np.clip(levels, -LEVELS, LEVELS).astype(np.int8), scale


def _quantize_identity(pairs: "Pairs", nodes: Mapping[str, NodeProto], layer: str, identity: Identity) -> None:
    pair = pairs.of(identity.value, identity.scale_of, f"{layer}/int8/identity")
    add = nodes[identity.add]
    add.input[:] = [pair if name == identity.value else name for name in add.input]


def _quantize_result(graph: Graph, pairs: "Pairs", result: str) -> None:
    """Let all that reads ``result`` read its pair."""
    pair = pairs.of(result, result, f"{result}/int8")
    for node in graph.consumers(result):
        if node.op_type != "QuantizeLinear":
            node.input[:] = [pair if name == result else name for name in node.input]


class Pairs:
    """Adds Q/DQ pairs and INT8 weights to a graph, encoded as a placement says."""

    def __init__(self, graph: Graph, placement: Placement, thresholds: Mapping[str, float]) -> None:
        self._graph, self._placement, self._thresholds = graph, placement, thresholds
        self._shared: dict[str, str] = {}
        """Where activations are unsigned, a value's pair serves all its readers."""

    def inputs(self, layer: Layer, conv: NodeProto) -> list[str]:
        """What to give the convolution ``conv`` of ``layer``: its input's pair, INT8 weights, its bias if any."""
        value = self.of(layer.value, layer.scale_of, f"{layer.name}/int8/input")
        weight = self._graph.constants[conv.input[1]]
        bias = [self._graph.constants[name] for name in conv.input[2:3] if name]
        if not (self._placement.unsigned and bias):
            return [value, self._weight(layer.name, *quantized_weight(weight)), *conv.input[2:]]
        step = float(self._encoding(layer.scale_of)[0])
        scale = fitting_scale(weight, quantized_weight(weight)[1], bias[0], step)
        levels = quantized_weight(weight, scale)
        return [value, self._weight(layer.name, *levels), self._bias(layer.name, *int32_bias(bias[0], step, scale))]

    def of(self, value: str, scale_of: str, name: str) -> str:
        """A QuantizeLinear and a DequantizeLinear of ``value``, called ``name``; returns what the latter makes."""
        if self._placement.unsigned and value in self._shared:
            return self._shared[value]
        scale, zero_point = self._encoding(scale_of)
        constants = [
            self._graph.add_constant(f"{scale_of}/int8_scale", np.array(scale)),
            self._graph.add_constant(f"{zero_point.dtype}_zero_point_{zero_point}", zero_point),
        ]
        levels = self._graph.add("QuantizeLinear", [value, *constants], f"{name}/quantized")
        self._shared[value] = self._graph.add("DequantizeLinear", [levels, *constants], f"{name}/dequantized")
        return self._shared[value]

    def _encoding(self, tensor: str) -> tuple[np.float32, npt.NDArray[np.generic]]:
        """Scale and zero point."""
        threshold = self._thresholds[tensor]
        if tensor in self._placement.nonnegative:
            return np.float32(max(threshold / (2 * LEVELS + 1), LEAST_SCALE)), np.array(0, np.uint8)
        zero_point = np.array(LEVELS + 1, np.uint8) if self._placement.unsigned else np.array(0, np.int8)
        return np.float32(max(threshold / LEVELS, LEAST_SCALE)), zero_point

    def _weight(self, name: str, levels: npt.NDArray[np.int8], scale: npt.NDArray[np.float32]) -> str:
        """INT8 weights and their DequantizeLinear; returns what that makes."""
        constants = [
            self._graph.add_constant(f"{name}/int8/levels", levels),
            self._graph.add_constant(f"{name}/int8/scale", scale),
            self._graph.add_constant(f"{name}/int8/zero_point", np.zeros(len(scale), np.int8)),
        ]
        return self._graph.add("DequantizeLinear", constants, f"{name}/int8/weight", axis=_CHANNEL_AXIS)

    def _bias(self, name: str, levels: npt.NDArray[np.int32], steps: npt.NDArray[np.float32]) -> str:
        constants = [
            self._graph.add_constant(f"{name}/int8/bias_levels", levels),
            self._graph.add_constant(f"{name}/int8/bias_scale", steps),
            self._graph.add_constant(f"{name}/int8/bias_zero_point", np.zeros(len(steps), np.int32)),
        ]
        return self._graph.add("DequantizeLinear", constants, f"{name}/int8/bias", axis=_CHANNEL_AXIS)
