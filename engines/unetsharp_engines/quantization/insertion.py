"""Writing a placement into a graph: weights in INT8, Q/DQ pairs where the recipe says."""

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto

from unetsharp_engines.quantization.placement import Layer, Placement
from unetsharp_engines.quantization.thresholds import LEVELS
from unetsharp_engines.rewrites.graph import Graph, name_of

__all__ = ["LEAST_SCALE", "int8_inputs", "quantize", "quantized_weight"]

LEAST_SCALE = 2.0**-100
"""Smaller scales are raised to this: float32 must hold the scale and its reciprocal, and a product of two."""

_CHANNEL_AXIS = 0
"""Of a convolution's weights: output channels."""


def quantize(
    model: ModelProto, placement: Placement, thresholds: Mapping[str, float], *, floats: Collection[str] = ()
) -> ModelProto:
    """A copy of float ``model`` with ``placement``'s layers in INT8, except those named in ``floats``.

    ``thresholds`` gives the magnitude that INT8's 127 stands for, for each of ``placement.tensors``. Layers in
    ``floats`` keep their float weights and have no pairs, not on a residual branch either.
    """
    graph = Graph(model)
    nodes = {name_of(node): node for node in graph.nodes}
    for layer in placement.layers:
        if layer.name not in floats:
            _quantize_layer(graph, nodes, layer, thresholds)
    return graph.model()


def quantized_weight(
    weight: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """A convolution's weights [O, I, kh, kw] in INT8, and float32 scales [O]: each channel's largest becomes 127."""
    largest = np.abs(weight.astype(np.float64)).reshape(len(weight), -1).max(axis=1)
    scale = np.where(largest > 0, np.maximum(largest / LEVELS, LEAST_SCALE), 1.0).astype(np.float32)
    levels = np.rint(weight / scale.astype(np.float64)[:, None, None, None])
    return np.clip(levels, -LEVELS, LEVELS).astype(np.int8), scale


def _quantize_layer(
    graph: Graph, nodes: Mapping[str, NodeProto], layer: Layer, thresholds: Mapping[str, float]
) -> None:
    conv = nodes[layer.name]
    conv.input[:2] = int8_inputs(graph, layer, conv, thresholds)
    if layer.identity is not None:
        add, value, scale_of = nodes[layer.identity.add], layer.identity.value, layer.identity.scale_of
        pair = _pair(graph, f"{layer.name}/int8/identity", value, scale_of, thresholds)
        add.input[:] = [pair if name == value else name for name in add.input]


def int8_inputs(graph: Graph, layer: Layer, conv: NodeProto, thresholds: Mapping[str, float]) -> tuple[str, str]:
    """Add the pair of ``layer``'s input and its INT8 weights to ``graph``; returns what to give the convolution."""
    value = _pair(graph, f"{layer.name}/int8/input", layer.value, layer.scale_of, thresholds)
    return value, _weights(graph, layer.name, graph.constants[conv.input[1]])


def _pair(graph: Graph, name: str, value: str, scale_of: str, thresholds: Mapping[str, float]) -> str:
    """A QuantizeLinear and a DequantizeLinear of ``value``; returns what the latter makes."""
    scale = np.float32(max(thresholds[scale_of] / LEVELS, LEAST_SCALE))
    constants = [
        graph.add_constant(f"{scale_of}/int8_scale", np.array(scale)),
        graph.add_constant("int8_zero_point", np.array(0, np.int8)),
    ]
    levels = graph.add("QuantizeLinear", [value, *constants], f"{name}/quantized")
    return graph.add("DequantizeLinear", [levels, *constants], f"{name}/dequantized")


def _weights(graph: Graph, name: str, weight: npt.NDArray[np.float32]) -> str:
    """INT8 weights and their DequantizeLinear; returns what that makes. The float weights go unless others use them."""
    levels, scale = quantized_weight(weight)
    constants = [
        graph.add_constant(f"{name}/int8/levels", levels),
        graph.add_constant(f"{name}/int8/scale", scale),
        graph.add_constant(f"{name}/int8/zero_point", np.zeros(len(scale), np.int8)),
    ]
    return graph.add("DequantizeLinear", constants, f"{name}/int8/weight", axis=_CHANNEL_AXIS)
