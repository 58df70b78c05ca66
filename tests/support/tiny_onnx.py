"""A network of six nodes that a runtime and a builder take for a U-Net#: contract's tensors, metadata, Mish, Resize."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from unetsharp_engines.contract import CLASSES, INPUT_NAME, OUTPUT_NAME
from unetsharp_engines.model_info import METADATA_KEY, ModelInfo

INFO = ModelInfo(name="tiny", encoder="none", width=4, train_size=64, tile=64)


def tiny_onnx(*, side: int = 64, batch: int | str = "N", variance: float = 0.5, scale: float = 1.0) -> onnx.ModelProto:
    """Conv /2, Mish, BatchNorm with ``variance``, Resize ×2, Conv to six channels; ``scale`` multiplies the weights."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((rng.standard_normal(shape) * 0.1 * scale).astype(np.float32), name)

    def vector(name: str, value: float) -> onnx.TensorProto:
        return numpy_helper.from_array(np.full(4, value, np.float32), name)

    nodes = [
        helper.make_node("Conv", [INPUT_NAME, "w0"], ["c"], name="stem", pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Softplus", ["c"], ["sp"], name="softplus"),
        helper.make_node("Tanh", ["sp"], ["th"], name="tanh"),
        helper.make_node("Mul", ["c", "th"], ["m"], name="mish"),
        helper.make_node("BatchNormalization", ["m", "g", "b", "mu", "var"], ["n"], name="norm"),
        helper.make_node(
            "Constant", [], ["up"], name="scales", value=numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32))
        ),
        helper.make_node("Resize", ["n", "", "up"], ["r"], name="resize", mode="linear"),
        helper.make_node("Conv", ["r", "w1"], [OUTPUT_NAME], name="head", pads=[1] * 4),
    ]
    weights = [
        weight("w0", 4, 3, 3, 3),
        vector("g", 0.9),
        vector("b", 0.2),
        vector("mu", 0.1),
        vector("var", variance),
        weight("w1", len(CLASSES), 4, 3, 3),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, [batch, 3, side, side])],
        [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, [batch, len(CLASSES), side, side])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {METADATA_KEY: INFO.to_json()})
    onnx.checker.check_model(model, full_check=True)
    return model


def save_tiny_onnx(path: Path, **changes: float) -> Path:
    """Write `tiny_onnx` to ``path`` and return it."""
    onnx.save(tiny_onnx(**changes), path)  # type: ignore[arg-type]
    return path


def run_onnx(model: onnx.ModelProto, x_NCHW: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The logits of ``model`` on ONNX Runtime's CPU provider."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {INPUT_NAME: x_NCHW})
    return np.asarray(logits)
