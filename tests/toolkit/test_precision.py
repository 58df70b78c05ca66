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
    values = numpy_helper.to_array(weights_of(to_fp16(tiny_onnx(scale=1e-10)))["w0"])
    assert not values.any()


@pytest.mark.parametrize(("scale", "shown"), [(1e7, "w0"), (float("nan"), "w0"), (float("inf"), "w0")])
def test_weights_too_large_for_fp16_are_refused_by_name(scale: float, shown: str) -> None:
    with np.errstate(over="ignore", invalid="ignore"), pytest.raises(InputError, match=shown):
        to_fp16(tiny_onnx(scale=scale))


def test_fp16_is_not_converted_again() -> None:
    converted = to_fp16(tiny_onnx())
    assert precision_of(tiny_onnx()) == "fp32"
    assert precision_of(converted) == "fp16"
    with pytest.raises(InputError, match="fp16 already"):
        to_fp16(converted)
