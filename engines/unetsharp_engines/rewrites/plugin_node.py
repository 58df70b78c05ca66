"""The one node that is no ONNX operator: what follows the taps of a deep convolution, run by a kernel of this project.

``UpsampleShiftAddMish`` takes taps [N, 9·C, h, w], tap by tap, and float32 scale and shift [C]; it gives
[N, C, h·factor, w·factor] in the taps' type: the nine taps of each channel upsampled, shifted and added up as `taps`
says, through Mish, times scale plus shift. Its attribute ``factors`` holds the factor of rows and that of columns,
which are equal: a list, since ``tensorrt.plugin`` before 11.4 cannot read a single number where NumPy is 2.4 or later.
TensorRT knows the node once `unetsharp.build.plugin` has told it; no other runtime does.
"""

from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from unetsharp_engines.contract import TAPS

__all__ = ["DOMAIN", "FLOAT32_INPUTS", "OP_TYPE", "PLUGIN_ATTRIBUTES", "factor_of", "is_plugin", "stand_in"]

OP_TYPE = "UpsampleShiftAddMish"
DOMAIN = "unetsharp"
"""Of the ONNX operator, and the namespace of the TensorRT plugin."""

PLUGIN_ATTRIBUTES = {"plugin_namespace": DOMAIN, "plugin_version": "1", "aot": 1}
"""What TensorRT's ONNX parser goes by: where the plugin is found, and that its compiled form is wanted, or none."""

FLOAT32_INPUTS = (1, 2)
"""Scale and shift stay in float32 where the taps are float16."""


def is_plugin(node: NodeProto) -> bool:
    """Whether ``node`` is one."""
    return (node.domain, node.op_type) == (DOMAIN, OP_TYPE)


def factor_of(node: NodeProto) -> int:
    """By how much it upsamples, in rows and in columns."""
    return int(next(attribute.ints[0] for attribute in node.attribute if attribute.name == "factors"))


def stand_in(node: NodeProto, channels: int) -> tuple[NodeProto, ValueInfoProto]:
    """An ONNX node with the same output shape and type, for shape inference, and the weight that it reads beside taps.

    A transposed convolution, since one node does it; ``channels`` are those of the output.
    """
    factor, weight = factor_of(node), f"{node.output[0]}/stand_in"
    replaced = helper.make_node("ConvTranspose", [node.input[0], weight], list(node.output), strides=[factor, factor])
    shape = [TAPS * channels, channels, factor, factor]
    return replaced, helper.make_tensor_value_info(weight, TensorProto.FLOAT, shape)
