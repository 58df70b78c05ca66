"""Graphs of a few nodes in float64, and how a rewrite is tried on them."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from support.networks import evaluated
from unetsharp_engines.rewrites import rewrite

EXACT = 1e-12
RNG = np.random.default_rng(11)
BILINEAR = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
CONV3 = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
CONV1 = {"kernel_shape": [1, 1]}


def model(nodes: list[onnx.NodeProto], weights: dict[str, Any], shape: tuple[int, ...]) -> onnx.ModelProto:
    """From input "image" [N, *shape] to output "o", all float64."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.DOUBLE, ["N", *shape])],
        [helper.make_tensor_value_info("o", TensorProto.DOUBLE, [None] * 4)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def node(op_type: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, [name.strip("-") for name in inputs.split()], [output], output, **attributes)


def norm(prefix: str, channels: int) -> dict[str, np.ndarray]:
    names = [f"{prefix}{i}" for i in range(4)]
    return {name: RNG.uniform(0.5, 1.5, channels) for name in names}


def difference(before: onnx.ModelProto, after: onnx.ModelProto) -> float:
    onnx.checker.check_model(after, full_check=True)
    shape = [d.dim_value or 2 for d in before.graph.input[0].type.tensor_type.shape.dim]
    x = RNG.normal(size=shape)
    return float(np.abs(evaluated(before, x) - evaluated(after, x)).max())


def ops(of: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in of.graph.node]


def acts(before: onnx.ModelProto, name: str) -> onnx.ModelProto:
    after, report = rewrite(before, [name])
    assert report.passes[0].sites
    assert difference(before, after) <= EXACT
    return after


def abstains(before: onnx.ModelProto, name: str, why: str) -> None:
    after, report = rewrite(before, [name])
    assert report.passes[0].sites == ()
    assert why in report.passes[0].note
    assert ops(after) == ops(before)
