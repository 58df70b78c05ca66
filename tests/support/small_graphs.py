"""Graphs of a few nodes, built node by node."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from unetsharp_engines.contract import CLASSES, INPUT_NAME, OUTPUT_NAME


class SmallGraph:
    """Starts at the image, float32 [N, 3, side, side]; every method adds a node and returns what it makes.

    A convolution's weights are random, of a size that keeps magnitudes.
    """

    def __init__(self, side: int = 8, seed: int = 0) -> None:
        self.side = side
        self._rng = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, np.ndarray] = {}

    def conv(self, x: str, cin: int, cout: int, name: str, *, kernel: int = 3, group: int = 1, **attributes) -> str:
        shape = (cout, cin // group, kernel, kernel)
        self._weights[f"{name}.weight"] = self._rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        self._weights[f"{name}.bias"] = self._rng.standard_normal(cout) * 0.1
        pads = {"pads": [kernel // 2] * 4, "group": group, **attributes}
        return self.op("Conv", x, f"{name}.weight", f"{name}.bias", name=name, **pads)

    def mish(self, x: str) -> str:
        return self.op("Mul", x, self.op("Tanh", self.op("Softplus", x)))

    def upsample(self, x: str, mode: str = "linear") -> str:
        return self.op("Resize", x, "", self.constant(np.array([1, 1, 2, 2], np.float32)), mode=mode)

    def constant(self, values: np.ndarray) -> str:
        name = f"constant{len(self._weights)}"
        self._weights[name] = values
        return name

    def op(self, op_type: str, *inputs: str, name: str = "", **attributes) -> str:
        output = f"{name or op_type}.{len(self._nodes)}"
        self._nodes.append(helper.make_node(op_type, inputs, [output], name=name or output, **attributes))
        return output

    def replace(self, weight: str, values: np.ndarray) -> None:
        """Give a weight other values."""
        self._weights[weight] = values

    def model(self, x: str) -> onnx.ModelProto:
        """The whole, ending in ``x``, which must have as many channels as there are classes."""
        nodes = [*self._nodes, helper.make_node("Identity", [x], [OUTPUT_NAME])]
        graph = helper.make_graph(
            nodes,
            "small",
            [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, ["N", 3, self.side, self.side])],
            [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, ["N", len(CLASSES), self.side, self.side])],
            [numpy_helper.from_array(np.asarray(w, np.float32), n) for n, w in self._weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model
