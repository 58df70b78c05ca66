"""Where INT8 goes in a U-Net#: the recipe for TensorRT, rule by rule.

TensorRT computes a convolution in INT8 where both its inputs come straight from DequantizeLinear, and fuses what
follows it (bias, activation, a residual Add) up to the next QuantizeLinear. A QuantizeLinear or DequantizeLinear in
any other place is one more pass over memory, or keeps two layers from being fused. So:

1. *A pair for each input.* Every INT8 convolution has a Q/DQ pair of its own directly before its input, none behind
   it, and per-channel weights stored in INT8. Symmetric, zero point 0; the bias stays float, since an INT32 bias with a
   DequantizeLinear does not parse. An activation's scale is a number, not a vector of one: TensorRT-RTX 1.7 takes that
   for a scale per channel, and rounds as told, but convolves in float (read from its engines). [NVIDIA, "Explicit
   quantization": quantize all inputs of weighted operations, not their outputs; do not put Q/DQ between a convolution
   and its BatchNorm or activation]
2. *One tensor, one scale.* Pairs that read the same tensor have the same scale, also where MaxPool or a linear or
   nearest Resize lies between: neither makes larger values, and a QuantizeLinear may then be moved across and merged.
   [NVIDIA: Q/DQ commute with layers that only move or compare values]
3. *Residual Add.* Its identity branch gets a pair if the other branch is an INT8 convolution, and that one gets none:
   convolution, Add and activation then are one kernel with an INT8 residual. [NVIDIA, ResNet Q/DQ case of its
   quantization toolkits]
4. *Concat.* Its inputs get none; the pair of the convolution behind it quantizes all with one scale, which is what lets
   TensorRT have them written side by side in INT8. [NVIDIA: concatenated inputs need equal scales]
5. *Gates stay float*: both 1×1 levels before an attention gate's or a squeeze-and-excitation's sigmoid, and the product
   behind it. They are 0.5% of the arithmetic, and a sigmoid's slope multiplies their rounding. [customary:
   no Q/DQ before a sigmoid]
6. *The first convolution and the head stay float*: three input channels fill no INT8 tile, and the head's rounding goes
   straight into the argmax. [customary; 1% of the arithmetic]
7. *What sees one pixel stays float*: the ASPP's pooled branch, squeeze-and-excitation. No arithmetic to save.
8. *Grouped convolutions stay float* unless asked for: TensorRT's INT8 kernels for few channels a group are reported to
   be slow. 1.4% of the arithmetic. (All shares are of the
   paper's configuration as exported.)

TensorRT 8.6 stops at an assertion (``chooseHigherPrecision``) where pairs are placed behind every convolution and
shared by all who read the tensor, as general-purpose quantizers do. Here that puts one DequantizeLinear before both
Softplus and Mul of a Mish, and others before a gate's Add and Mul. The hypothesis behind rule 1, *not yet measured for
want of a GPU with that version*: the assertion compares the precisions of a fused pointwise operation's inputs, so a
pair that a pointwise operation reads, other than the Add of rule 3, is what it cannot take.
"""

from collections.abc import Callable
from dataclasses import dataclass

from onnx import NodeProto

from unetsharp_engines.quantization.wiring import Wiring
from unetsharp_engines.rewrites.graph import Graph, attributes, name_of

__all__ = ["FloatLayer", "Identity", "Layer", "Placement", "place"]

_SQUASHING = {"Sigmoid", "HardSigmoid"}
_POOLING = {"GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax"}


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The branch of a residual Add that is quantized along with the convolution of the other branch."""

    add: str
    """Name of the Add."""
    value: str
    """The identity branch."""
    scale_of: str
    """Tensor whose magnitudes give the scale."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A convolution to be computed in INT8."""

    name: str
    value: str
    """What it reads."""
    scale_of: str
    """Tensor whose magnitudes give the scale of ``value``: itself, or what it was pooled or resized from."""
    identity: Identity | None = None
    result: str | None = None
    """What is quantized behind it: its result, or its ReLU's; None if nothing is."""


@dataclass(frozen=True, kw_only=True)
class FloatLayer:
    """A convolution that is left in float, and the rule that says so."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What the recipe says of a graph."""

    layers: tuple[Layer, ...]
    """In the graph's order."""
    floats: tuple[FloatLayer, ...]
    unsigned: bool = False
    """Whether activations are uint8 with a zero point, as `cpu` wants them; else int8."""
    nonnegative: frozenset[str] = frozenset()
    """Of `tensors`, those that are never negative; told where ``unsigned``."""

    @property
    def tensors(self) -> tuple[str, ...]:
        """Every tensor that needs a scale, once."""
        inputs = [layer.scale_of for layer in self.layers]
        identities = [layer.identity.scale_of for layer in self.layers if layer.identity is not None]
        results = [layer.result for layer in self.layers if layer.result is not None]
        return tuple(dict.fromkeys(inputs + identities + results))


def place(graph: Graph, *, grouped: bool = False) -> Placement:
    """Apply the rules to a float network; ``grouped`` is rule 8's option.

    It goes by the graph's structure, not by names, so it takes any encoder and width, rewritten or not.
    """
    wiring = Wiring(graph)
    rules = [*_RULES] if grouped else [*_RULES, _grouped]
    convs = [node for node in wiring.nodes if _is_conv(node)]
    kept = {id(node): reason for rule in reversed(rules) for node, reason in rule(wiring)}
    quantized = {id(node) for node in convs} - kept.keys()
    return Placement(
        layers=tuple(_layer(wiring, node, quantized) for node in convs if id(node) in quantized),
        floats=tuple(FloatLayer(name=name_of(node), reason=kept[id(node)]) for node in convs if id(node) in kept),
    )


_Kept = list[tuple[NodeProto, str]]


def _is_conv(node: NodeProto) -> bool:
    return node.op_type == "Conv"


def _odd(wiring: Wiring) -> _Kept:
    """What rule 1 cannot be said of: weights that are no constants, other than two dimensions."""
    odd = [n for n in wiring.nodes if _is_conv(n) and len(wiring.shapes.get(n.input[1], ())) != 4]
    odd += [n for n in wiring.nodes if _is_conv(n) and n.input[1] not in wiring.constants]
    return [(node, "no plain 2-D convolution") for node in odd]


def _first(wiring: Wiring) -> _Kept:
    """Rule 6: no convolution before it."""
    image = [node for name in wiring.inputs for node in wiring.behind(name, _is_conv)]
    return [(node, "reads the image") for node in image if _is_conv(node) and not _has_conv_before(wiring, node)]


def _has_conv_before(wiring: Wiring, node: NodeProto) -> bool:
    return any(_is_conv(earlier) for earlier in wiring.before(node.input[0], _is_conv))


def _head(wiring: Wiring) -> _Kept:
    """Rule 6: no convolution behind it on some way to an output."""
    last = (node for name in wiring.outputs for node in wiring.before(name, _is_conv))
    return [(node, "makes the logits") for node in last if _is_conv(node)]


def _gates(wiring: Wiring) -> _Kept:
    """Rule 5."""
    found: _Kept = []
    for node in wiring.nodes:
        if node.op_type in _SQUASHING and not _is_swish(wiring, node):
            found += [(conv, "leads to a gate's sigmoid") for conv in _two_levels(wiring, node.input[0])]
    return found


def _is_swish(wiring: Wiring, sigmoid: NodeProto) -> bool:
    """x·sigmoid(x) is an activation, not a gate."""
    readers = wiring.readers[sigmoid.output[0]]
    return any(reader.op_type == "Mul" and sigmoid.input[0] in reader.input for reader in readers)


def _two_levels(wiring: Wiring, value: str) -> list[NodeProto]:
    """The convolutions that ``value`` comes from, and the 1×1 ones before those; not beyond a global pooling."""
    nearest = _convs_before(wiring, value)
    return nearest + [c for n in nearest for c in _convs_before(wiring, n.input[0]) if _is_pointwise(wiring, c)]


def _convs_before(wiring: Wiring, value: str) -> list[NodeProto]:
    found = wiring.before(value, lambda node: _is_conv(node) or node.op_type in _POOLING)
    return [node for node in found if _is_conv(node)]


def _is_pointwise(wiring: Wiring, conv: NodeProto) -> bool:
    return set(wiring.shapes[conv.input[1]][2:]) == {1}


def _single_pixel(wiring: Wiring) -> _Kept:
    """Rule 7."""
    return [(n, "sees a single pixel") for n in wiring.nodes if _is_conv(n) and not wiring.is_map(n.input[0])]


def _grouped(wiring: Wiring) -> _Kept:
    """Rule 8."""
    return [(n, "grouped") for n in wiring.nodes if _is_conv(n) and attributes(n).get("group", 1) > 1]


_RULES: tuple[Callable[[Wiring], _Kept], ...] = (_odd, _first, _head, _gates, _single_pixel)
"""Where two hold, the earlier gives the reason."""


def _layer(wiring: Wiring, conv: NodeProto, quantized: set[int]) -> Layer:
    value = conv.input[0]
    return Layer(
        name=name_of(conv), value=value, scale_of=_origin(wiring, value), identity=_identity(wiring, conv, quantized)
    )


def _origin(wiring: Wiring, value: str) -> str:
    """Rule 2: the tensor before all pooling and resizing."""
    node = wiring.producer.get(value)
    while node is not None and _keeps_range(node):
        value = node.input[0]
        node = wiring.producer.get(value)
    return value


def _keeps_range(node: NodeProto) -> bool:
    """Whether no output value exceeds the largest input value: a cubic Resize overshoots."""
    return node.op_type == "MaxPool" or (
        node.op_type == "Resize" and attributes(node).get("mode", "nearest") in {"linear", "nearest"}
    )


def _identity(wiring: Wiring, conv: NodeProto, quantized: set[int]) -> Identity | None:
    """Rule 3: if ``conv`` is the branch that TensorRT fuses with a residual Add, the Add's other branch."""
    add = _sole_add(wiring, conv)
    if add is None:
        return None
    mine, other = _branches(wiring, add, conv)
    if not wiring.is_map(other) or wiring.shapes[mine] != wiring.shapes.get(other):
        return None
    rival = _conv_of(wiring, other)
    if rival is not None and id(rival) in quantized and not _is_before(wiring, rival, conv):
        return None  # the rival is the longer branch, and is fused instead
    return Identity(add=name_of(add), value=other, scale_of=_origin(wiring, other))


def _sole_add(wiring: Wiring, conv: NodeProto) -> NodeProto | None:
    """The Add of two tensors that alone reads ``conv``, or the BatchNorm behind it."""
    readers = wiring.readers[conv.output[0]]
    if len(readers) == 1 and readers[0].op_type == "BatchNormalization":
        readers = wiring.readers[readers[0].output[0]]
    is_add = len(readers) == 1 and readers[0].op_type == "Add"
    return readers[0] if is_add and len(set(wiring.tensors_of(readers[0]))) == 2 else None


def _branches(wiring: Wiring, add: NodeProto, conv: NodeProto) -> tuple[str, str]:
    """The Add's input that ``conv`` makes, then the other."""
    first, second = add.input
    return (first, second) if _conv_of(wiring, first) is conv else (second, first)


def _conv_of(wiring: Wiring, value: str) -> NodeProto | None:
    """The convolution that makes ``value``, itself or with a BatchNorm behind it."""
    node = wiring.producer.get(value)
    if node is not None and node.op_type == "BatchNormalization":
        node = wiring.producer.get(node.input[0])
    return node if node is not None and _is_conv(node) else None


def _is_before(wiring: Wiring, shortcut: NodeProto, conv: NodeProto) -> bool:
    """Whether ``conv`` comes, by way of other convolutions, from what ``shortcut`` reads."""
    start = _origin(wiring, shortcut.input[0])
    pooled = wiring.producer.get(start)
    if pooled is not None and pooled.op_type == "AveragePool":
        start = pooled.input[0]
    earlier = wiring.before(conv.input[0], lambda node: start in node.output)
    return conv.input[0] != start and any(start in node.output for node in earlier)
