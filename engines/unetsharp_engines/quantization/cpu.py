"""Where INT8 goes for ONNX Runtime on a CPU: the recipe of `placement`, but for what its kernels want otherwise.

ONNX Runtime has one fast integer convolution, ``QLinearConv`` of unsigned activations and signed weights, and no fused
activations but ReLU. One whose result is float is computed in float32 (``benchmarks/cpu_speed.py`` has both). So:

1. *Activations are uint8*, with zero point 128, or 0 for what is never negative: one level more, and ReLU for free.
2. *A pair behind each convolution as well*, behind its ReLU if nothing else reads it; whoever reads the tensor reads
   the pair. This is a second rounding, which TensorRT's placement does without.
3. *The bias is int32* at the scale of the products, as ``QLinearConv`` has it.
4. *No pair on a residual branch*: the Add stays float.
5. *Grouped convolutions are INT8*, too: they are as fast as the others.

On x86-64 without VNNI that kernel overflows; `runtimes.onnxruntime` then asks for the one of unsigned by unsigned,
which is slower, and right.

It is to be applied to the graph that ONNX Runtime will run: the one with its own rewrites. TensorRT takes no uint8.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from unetsharp_engines.quantization.placement import Layer, Placement, place
from unetsharp_engines.quantization.wiring import Wiring
from unetsharp_engines.rewrites.graph import Graph, name_of

__all__ = ["fitting_scale", "int32_bias", "place_for_cpu"]

_BIAS_LEVELS = 2.0**30
"""Largest int32 bias used: room for the products to be added to."""

_KEEPING_SIGN = {"MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Reshape", "Transpose"}


def place_for_cpu(graph: Graph) -> Placement:
    """The recipe for a float network that was rewritten for ONNX Runtime."""
    placement = place(graph, grouped=True)
    wiring = Wiring(graph)
    layers = tuple(_with_result(wiring, layer) for layer in placement.layers)
    found = Placement(layers=layers, floats=placement.floats, unsigned=True)
    return replace(found, nonnegative=frozenset(name for name in found.tensors if _is_nonnegative(wiring, name)))


def _with_result(wiring: Wiring, layer: Layer) -> Layer:
    """Rules 2 and 4."""
    (conv,) = (node for node in wiring.nodes if name_of(node) == layer.name)
    result = conv.output[0]
    readers = wiring.readers[result]
    if len(readers) == 1 and readers[0].op_type == "Relu" and result not in wiring.outputs:
        result = readers[0].output[0]
    return replace(layer, result=result, identity=None)


def _is_nonnegative(wiring: Wiring, name: str) -> bool:
    node = wiring.producer.get(name)
    while node is not None and node.op_type in _KEEPING_SIGN:
        node = wiring.producer.get(node.input[0])
    return node is not None and node.op_type in ("Relu", "Sigmoid")


def fitting_scale(
    weight: npt.NDArray[np.float32],
    scale: npt.NDArray[np.float32],
    bias: npt.NDArray[np.float32],
    input_scale: float,
) -> npt.NDArray[np.float32]:
    """``scale`` [O] of a convolution's weights [O, …], raised where its bias [O] would not fit int32 at it.

    A channel without weights is its bias alone, and has the finest scale that holds it.
    """
    least = np.abs(bias.astype(np.float64)) / (input_scale * _BIAS_LEVELS)
    has_weights = weight.reshape(len(weight), -1).any(axis=1)
    fitting = np.where(has_weights, np.maximum(scale, least), least)
    return np.where(fitting > 0, fitting, 1.0).astype(np.float32)


def int32_bias(
    bias: npt.NDArray[np.float32], input_scale: float, scale: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Rule 3: a bias [O] as int32 levels, and their scales [O]."""
    steps = (np.float32(input_scale) * scale).astype(np.float32)
    return np.rint(bias / steps.astype(np.float64)).astype(np.int32), steps
