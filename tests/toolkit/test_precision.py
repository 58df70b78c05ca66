"""fp32 ONNX → fp16 ONNX: types, values, and what float16 cannot hold."""

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from support.tiny_onnx import run_onnx, tiny_onnx
from unetsharp.export.precision import precision_of, to_fp16
from unetsharp_engines.contract import INPUT_NAME, OUTPUT_NAME
from unetsharp_engines.errors import InputError
from unetsharp_engines.model_info import METADATA_KEY
from unetsharp_engines.quantization import Placement, quantize
from unetsharp_engines.quantization.placement import Layer

FLOAT16, FLOAT32 = TensorProto.FLOAT16, TensorProto.FLOAT

TILES = np.random.default_rng(1).random((3, 3, 64, 64), dtype=np.float32)


def weights_of(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def test_output_is_the_fp32_networks_within_fp16_rounding() -> None:
    model = tiny_onnx()
    wanted, seen = run_onnx(model, TILES), run_onnx(to_fp16(model), TILES)
    assert seen.dtype == np.float32
    # A handful of float16 roundings (2^-11 each) of values of the logits' own size.
    assert np.abs(seen - wanted).max() <= 8 * 2.0**-11 * np.abs(wanted).max()
    assert np.abs(seen - wanted).max() > 0, "it does compute in float16"


def test_every_weight_is_fp16_but_resize_scales() -> None:
    converted = to_fp16(tiny_onnx())
    resize = next(node for node in converted.graph.node if node.op_type == "Resize")
    scales = weights_of(converted)[resize.input[2]]
    assert scales.data_type == TensorProto.FLOAT
    assert numpy_helper.to_array(scales).tolist() == [1, 1, 2, 2]
    others = {t.data_type for name, t in weights_of(converted).items() if name != resize.input[2]}
    assert others == {TensorProto.FLOAT16}


def test_names_types_and_metadata_of_the_ends_stay() -> None:
    converted = to_fp16(tiny_onnx())
    ends = [*converted.graph.input, *converted.graph.output]
    assert [(v.name, v.type.tensor_type.elem_type) for v in ends] == [
        (INPUT_NAME, TensorProto.FLOAT),
        (OUTPUT_NAME, TensorProto.FLOAT),
    ]
    assert converted.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert [entry.key for entry in converted.metadata_props] == [METADATA_KEY]


def test_the_given_model_is_left_alone() -> None:
    model = tiny_onnx()
    before = model.SerializeToString()
    to_fp16(model)
    assert model.SerializeToString() == before


def int8_onnx() -> onnx.ModelProto:
    """The same network with its last convolution in INT8."""
    model = tiny_onnx()
    layer = Layer(name="head", value="r", scale_of="r")
    return quantize(model, Placement(layers=(layer,), floats=()), {"r": 2.0})


def naive(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same conversion without looking after BatchNormalization."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    converted: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
    OnnxModel.graph_topological_sort(converted.graph)
    return converted


def dead(tile_value: float) -> onnx.ModelProto:
    """A network whose BatchNorm has seen nothing but tiles of ``tile_value``: its channels have no variance."""
    model = tiny_onnx(variance=1e-22)
    weights = weights_of(model)
    kernel = numpy_helper.to_array(weights["w0"]).copy()
    kernel[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0  # the centre alone: padding plays no part
    c = kernel.sum(axis=(1, 2, 3), dtype=np.float64) * tile_value
    mish = c * np.tanh(np.log1p(np.exp(c)))
    weights["w0"].CopyFrom(numpy_helper.from_array(kernel, "w0"))
    weights["mu"].CopyFrom(numpy_helper.from_array(mish.astype(np.float32), "mu"))
    return model


def worst(seen: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32]) -> float:
    """Largest difference as a share of the largest value."""
    return float(np.abs(seen - wanted).max() / np.abs(wanted).max())


def test_dead_channels_cost_nothing() -> None:
    """Their BatchNorm amplifies 285-fold: left as it is, float16's rounding of its input shows in the output."""
    tiles, model = np.full((1, 3, 64, 64), 0.37, np.float32), dead(0.37)
    wanted = run_onnx(model, tiles)
    assert worst(run_onnx(to_fp16(model), tiles), wanted) <= 2.0**-11
    assert worst(run_onnx(naive(dead(0.37)), tiles), wanted) > 20 * 2.0**-11


def test_weights_too_small_for_fp16_become_zero_not_the_smallest_number() -> None:
    values = numpy_helper.to_array(weights_of(to_fp16(tiny_onnx(scale=1e-10)))["w0/fp16"])
    assert values.dtype == np.float16
    assert not values.any()


def test_a_node_whose_weights_fp16_cannot_hold_stays_in_fp32() -> None:
    model = tiny_onnx(scale=1e7)
    converted = to_fp16(model)
    kept = {t.name for t in converted.graph.initializer if t.data_type == TensorProto.FLOAT}
    assert {"w0", "w1"} <= kept


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(value: float) -> None:
    with np.errstate(invalid="ignore"), pytest.raises(InputError, match="w0"):
        to_fp16(tiny_onnx(scale=value))


def test_islands_side_by_side_speak_fp32_to_each_other() -> None:
    """A million times its size between the two, far beyond float16."""
    model = tiny_onnx()
    weights = weights_of(model)
    for name, scale in (("w0", 1e4), ("g", 1e3), ("w1", 1e-7)):
        values = numpy_helper.to_array(weights[name]) * np.float32(scale)
        weights[name].CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))
    wanted = run_onnx(model, TILES)
    assert not worst(run_onnx(to_fp16(model), TILES), wanted) < 0.1
    converted = to_fp16(model, [node.name for node in model.graph.node])
    assert worst(run_onnx(converted, TILES), wanted) <= 2.0**-11
    narrow = [node for node in converted.graph.node if node.op_type == "Cast" and node.attribute[0].i == FLOAT16]
    assert not narrow


def test_a_value_read_in_both_types_is_cast_once() -> None:
    converted = to_fp16(tiny_onnx(), ["softplus", "tanh"])
    casts = [(n.input[0], n.attribute[0].i) for n in converted.graph.node if n.op_type == "Cast"]
    assert sorted(casts) == sorted(
        [(INPUT_NAME, FLOAT16), ("c", FLOAT32), ("th", FLOAT16), (f"{OUTPUT_NAME}/fp16", FLOAT32)]
    )


def test_int8_layers_stay_as_they_are_and_the_rest_becomes_fp16() -> None:
    model = int8_onnx()
    converted = to_fp16(model)
    assert precision_of(converted) == "int8"
    kinds = {name: tensor.data_type for name, tensor in weights_of(converted).items()}
    nodes = {node.name: node for node in converted.graph.node}
    pairs = [node for node in converted.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) == 3
    assert {kinds[node.input[1]] for node in pairs} == {FLOAT32}
    assert all(name.endswith(("dequantized", "int8/weight")) for name in nodes["head"].input)
    assert kinds[nodes["stem"].input[1]] == FLOAT16
    strays = np.abs(run_onnx(converted, TILES) - (wanted := run_onnx(model, TILES)))
    assert strays.mean() <= 0.005 * np.abs(wanted).max()  # a level of INT8 more or less now and then


def test_fp16_is_not_converted_again() -> None:
    converted = to_fp16(tiny_onnx())
    assert precision_of(tiny_onnx()) == "fp32"
    assert precision_of(converted) == "fp16"
    with pytest.raises(InputError, match="fp16 already"):
        to_fp16(converted)
