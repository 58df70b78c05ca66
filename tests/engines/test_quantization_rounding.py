"""A float16 network on a processor without float16: rounded where a GPU rounds."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from support.tiny_onnx import INFO, run_onnx, tiny_onnx
from unetsharp.export.precision import to_fp16
from unetsharp_engines.contract import INPUT_NAME, OUTPUT_NAME
from unetsharp_engines.model_info import METADATA_KEY
from unetsharp_engines.quantization.rounding import has_float16, spelled_out
from unetsharp_engines.runtimes.onnxruntime import OnnxRuntime
from unetsharp_engines.stain import IDENTITY, StainPlan

TILES = np.random.default_rng(1).random((3, 3, 64, 64), dtype=np.float32)


def doubling(factor: float) -> onnx.ModelProto:
    """Six channels of the image's first, times ``factor``, divided by it again, in float16."""
    kernels = [np.zeros((6, 3, 1, 1)), np.eye(6)[..., None, None] / factor]
    kernels[0][:, 0] = factor
    nodes = [
        helper.make_node("Cast", [INPUT_NAME], ["narrow"], name="narrow", to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["narrow", "w0"], ["large"], name="up"),
        helper.make_node("Conv", ["large", "w1"], ["back"], name="down"),
        helper.make_node("Cast", ["back"], [OUTPUT_NAME], name="wide", to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "doubling",
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, ["N", 3, 64, 64])],
        [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, ["N", 6, 64, 64])],
        [numpy_helper.from_array(k.astype(np.float16), f"w{i}") for i, k in enumerate(kernels)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {METADATA_KEY: INFO.to_json()})
    return model


def test_every_stored_tensor_is_rounded():
    """Bit for bit what numpy's float16 gives; ONNX Runtime left to itself does not round in between."""
    factor = 1.5
    wanted = np.repeat((TILES[:, :1].astype(np.float16) * np.float16(factor)).astype(np.float16), 6, axis=1)
    wanted = (wanted.astype(np.float32) * np.float32(np.float16(1 / factor))).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(run_onnx(spelled_out(doubling(factor)), TILES), wanted)
    assert (run_onnx(doubling(factor), TILES) != wanted).any()


def test_an_overflow_shows():
    assert not np.isfinite(run_onnx(spelled_out(doubling(60000.0)), 2 * TILES)).all()
    assert np.isfinite(run_onnx(doubling(60000.0), 2 * TILES)).all()


def test_the_runtime_computes_so():
    tiles = (255 * np.ones((1, 64, 64, 3))).astype(np.uint8)
    with OnnxRuntime(doubling(60000.0).SerializeToString()) as runtime:
        once = runtime.logits(tiles, StainPlan(IDENTITY))
    with OnnxRuntime(doubling(30000.0).SerializeToString(), tuned=False) as runtime:
        held = runtime.logits(tiles, StainPlan(IDENTITY))
    assert np.isfinite(once).all()  # 60000 is float16 yet
    np.testing.assert_allclose(held, 1.0, rtol=2e-3)


def test_what_has_no_float16_is_left_alone():
    model = tiny_onnx()
    assert not has_float16(model)
    assert spelled_out(model) is model
    assert has_float16(to_fp16(model))
    types = {t.data_type for t in spelled_out(to_fp16(model)).graph.initializer}
    assert TensorProto.FLOAT16 not in types


def test_islands_are_not_rounded_inside():
    """Softplus and Tanh in float32: their values between are not float16 numbers."""
    spelled = spelled_out(to_fp16(tiny_onnx(), ["softplus", "tanh"]))
    rounded = {node.input[0] for node in spelled.graph.node if node.op_type == "Cast"}
    assert "sp" not in rounded
    assert not any(name.startswith("sp/") for name in rounded)
