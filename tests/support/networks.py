"""Exported networks for tests of what runs them: random weights, BatchNorm statistics that matter, any arithmetic."""

import io
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from unetsharp_engines.contract import INPUT_NAME, OUTPUT_NAME
from unetsharp_engines.cuda import reference
from unetsharp_engines.rewrites.plugin_node import DOMAIN
from unetsharp_trainer import UNetSharp


def random_network(encoder: str, width: int, *, seed: int = 0) -> UNetSharp:
    """U-Net# in evaluation mode; every BatchNorm has statistics and an affine of its own."""
    torch.manual_seed(seed)
    network = UNetSharp(encoder, width).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.3, 1.5),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.5, 0.5),
            ):
                tensor.uniform_(low, high)
    return network


def exported(network: UNetSharp, height: int, width: int, *, folded: bool = True) -> onnx.ModelProto:
    """``network`` as ONNX for one size and any batch; unless ``folded``, every BatchNorm stays a node of its own."""
    file = io.BytesIO()
    mode = torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the TorchScript exporter announces its end
        torch.onnx.export(
            _Logits(network).eval(),
            (torch.zeros(2, 3, height, width),),
            file,
            dynamo=False,
            opset_version=17,
            training=mode,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_axes={INPUT_NAME: {0: "N"}, OUTPUT_NAME: {0: "N"}},
        )
    return onnx.load_model_from_string(file.getvalue())


def in_float64(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with float64 weights, inputs and outputs; the scales of Resize, which ONNX wants in float32, stay."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    del wide.graph.value_info[:]
    scales = {node.input[2] for node in wide.graph.node if node.op_type == "Resize"}
    for tensor in wide.graph.initializer:
        if tensor.name not in scales:
            _widen(tensor)
    for node in wide.graph.node:
        if node.op_type == "Constant" and node.output[0] not in scales:
            _widen(node.attribute[0].t)
    for value in (*wide.graph.input, *wide.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    return wide


def evaluated(model: onnx.ModelProto, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The model's output by onnx's reference implementation, in the model's own arithmetic.

    Convolution and resizing are PyTorch's: onnx's own are loops in Python, and ONNX Runtime has none in float64.
    """
    with np.errstate(over="ignore"):  # exp of a large number is infinite, as it should be
        (output,) = ReferenceEvaluator(model, new_ops=[Conv, Resize, MaxPool, UpsampleShiftAddMish]).run(
            None, {INPUT_NAME: image}
        )
    return output


class _Logits(torch.nn.Module):
    def __init__(self, network: UNetSharp) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.network.logits(image)


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))


class Conv(OpRun):
    op_domain = ""

    def _run(self, x, w, b=None, dilations=None, group=None, pads=None, strides=None, **_):
        top, left, bottom, right = pads or (0, 0, 0, 0)
        padded = F.pad(torch.tensor(x), (left, right, top, bottom))
        bias = None if b is None else torch.tensor(b)
        y = F.conv2d(padded, torch.tensor(w), bias, strides or 1, 0, dilations or 1, group or 1)
        return (y.numpy(),)


class Resize(OpRun):
    op_domain = ""

    def _run(self, x, roi=None, scales=None, sizes=None, mode=None, coordinate_transformation_mode=None, **_):
        assert (mode, coordinate_transformation_mode) == ("linear", "half_pixel")
        size = [int(s * k) for s, k in zip(x.shape[2:], scales[2:], strict=True)] if scales is not None else sizes[2:]
        return (F.interpolate(torch.tensor(x), size=[*size], mode="bilinear", align_corners=False).numpy(),)


class MaxPool(OpRun):
    op_domain = ""

    def _run(self, x, kernel_shape=None, pads=None, strides=None, ceil_mode=0, **_):
        top, left, bottom, right = pads or (0, 0, 0, 0)
        padded = F.pad(torch.tensor(x), (left, right, top, bottom), value=-torch.inf)
        return (F.max_pool2d(padded, kernel_shape, strides or 1, 0, ceil_mode=bool(ceil_mode)).numpy(),)


class UpsampleShiftAddMish(OpRun):
    op_domain = DOMAIN

    def _run(self, taps, scale, shift, factors=None, **_):
        return (reference.deep(taps, scale, shift, factors[0]).astype(taps.dtype),)
