"""Small networks with Q/DQ pairs in different places, as ONNX: what `int8_placements.py` builds and times.

The placements are those of ONNX Runtime's general-purpose quantizer, restricted to pairs that certain operations read:
``conv`` keeps the pairs that convolutions read, ``conv+mish`` also those that Mish reads, ``all-mish`` all but those.
Whichever of them stop and whichever do not say what it is that TensorRT cannot take. ``ours`` is the recipe's.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx

__all__ = ["ORDER", "write_networks"]

READERS = ("relu", "mish", "gate", "residual")
"""Kinds of operations, beside convolutions, that a general-purpose quantizer gives pairs to read."""

MOVERS = ("concat", "move")
"""Kinds that it gives none: their pairs are added to the recipe's, each with a scale of its own."""

ORDER = (
    "float", "ours", "all", "conv", *(f"conv+{kind}" for kind in READERS), *(f"ours+{kind}" for kind in MOVERS),
    *(f"all-{kind}" for kind in READERS), "edge-float", "edge-ours",
)  # fmt: skip
"""Names, in the order in which they are built; what begins with ``edge`` is the network that ships."""
SIDE = 64
"""Of the small network's pictures."""


def write_networks(folder: Path) -> None:
    """Write the ONNX of each name in `ORDER`."""
    folder.mkdir(parents=True, exist_ok=True)
    edge = onnx.load(str(files("unetsharp") / "assets" / "edge.onnx"))
    for prefix, model, wanted in (("", _small_network(), ORDER), ("edge-", edge, ("float", "ours"))):
        general = _general_purpose(model, folder)
        made = {"float": model, "ours": _ours(model), "all": general, "conv": _read_by(general, ())}
        made |= {f"ours+{kind}": _ours(model, kind) for kind in MOVERS if not prefix}
        made |= {f"conv+{kind}": _read_by(general, (kind,)) for kind in READERS}
        made |= {f"all-{kind}": _read_by(general, tuple(k for k in READERS if k != kind)) for kind in READERS}
        for name in wanted:
            if name in made:
                onnx.save(made[name], folder / f"{prefix}{name}.onnx")
                print(prefix + name, sum(n.op_type == "QuantizeLinear" for n in made[name].graph.node), "pairs")


def _small_network() -> Any:
    """One of each thing that U-Net# is made of, at width 32 and 64² pixels: so little that it builds in seconds."""
    import torch
    from torch import nn

    from unetsharp.export.tracing import trace
    from unetsharp_engines.rewrites import rewrite

    def block(inputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, 32, 3, padding=1), nn.Mish(), nn.BatchNorm2d(32))

    def up(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(x, scale_factor=2, mode="bilinear")

    class OneOfEach(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU())
            self.inner = nn.Sequential(nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1))
            self.lower, self.shallow, self.deep, self.fuse = block(32), block(32), block(32), block(64)
            self.signal, self.branch, self.gate = nn.Conv2d(32, 16, 1), nn.Conv2d(32, 16, 1), nn.Conv2d(16, 1, 1)
            self.head = nn.Conv2d(32, 6, 3, 1, 1)

        def logits(self, image: torch.Tensor) -> torch.Tensor:
            x = self.stem(image)
            x = nn.functional.relu(x + self.inner(x))
            lower = self.lower(nn.functional.max_pool2d(x, 2))
            shallow, deep = self.shallow(x), self.deep(up(lower))
            gate = torch.sigmoid(self.gate(nn.functional.relu(self.signal(deep) + self.branch(shallow))))
            logits: torch.Tensor = self.head(up(self.fuse(torch.cat([gate * shallow, deep], dim=1))))
            return logits

    torch.manual_seed(0)
    return rewrite(trace(OneOfEach().eval(), size=SIDE, opset=17))[0]  # type: ignore[arg-type]  # it has what is traced


def _images(side: int) -> Any:
    return np.random.default_rng(0).random((4, 3, side, side)).astype(np.float32)


def _side(model: Any) -> int:
    return int(model.graph.input[0].type.tensor_type.shape.dim[2].dim_value)


def _ours(model: Any, kind: str = "") -> Any:
    """The recipe's placement, and pairs before each operation of ``kind``."""
    from unetsharp_engines.quantization import Calibration, place, quantize, threshold
    from unetsharp_engines.rewrites.graph import Graph

    placement, graph = place(Graph(model)), Graph(model)
    extra = [n for node in graph.nodes if kind and _kind(graph, node) == kind for n in node.input if graph.producer(n)]
    calibration = Calibration(model, list(dict.fromkeys((*placement.tensors, *extra))))
    calibration.feed(_images(_side(model)))
    thresholds = {n: threshold(h, "minmax") for n, h in calibration.histograms.items()}
    return _with_pairs(quantize(model, placement, thresholds), kind, {name: thresholds[name] for name in extra})


def _with_pairs(model: Any, kind: str, thresholds: dict[str, float]) -> Any:
    from unetsharp_engines.rewrites.graph import Graph

    graph = Graph(model)
    readers = [node for node in graph.nodes if _kind(graph, node) == kind]
    for name, magnitude in thresholds.items():
        scale = graph.add_constant(f"{name}/extra_scale", np.array(magnitude / 127, np.float32))
        zero = graph.add_constant("int8_zero_point", np.array(0, np.int8))
        rounded = graph.add("QuantizeLinear", [name, scale, zero], f"{name}/extra/quantized")
        pair = graph.add("DequantizeLinear", [rounded, scale, zero], f"{name}/extra/dequantized")
        for node in readers:
            node.input[:] = [pair if seen == name else seen for seen in node.input]
    return graph.model()


def _general_purpose(model: Any, work: Path) -> Any:
    """ONNX Runtime's ``quantize_static`` of every convolution but the first and those of the recipe's rule 6."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    from unetsharp_engines.quantization import place
    from unetsharp_engines.rewrites.graph import Graph

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
        def __init__(self) -> None:
            self._images = iter(_images(_side(model)))

        def get_next(self) -> dict[str, Any] | None:
            image = next(self._images, None)
            return None if image is None else {"image": image[None]}

    ends = [x.name for x in place(Graph(model)).floats if x.reason in ("reads the image", "makes the logits")]
    source, target = work / "source.onnx", work / "general.onnx"
    onnx.save(model, source)
    quantize_static(
        source,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        nodes_to_exclude=ends,
        extra_options={"QuantizeBias": False, "ActivationSymmetric": True, "WeightSymmetric": True},
    )
    result = onnx.load(target)
    source.unlink()
    target.unlink()
    return result


def _read_by(general: Any, kinds: tuple[str, ...]) -> Any:
    """``general`` with the pairs that convolutions and ``kinds`` read; all other operations read the float value."""
    from unetsharp_engines.rewrites.graph import Graph

    graph = Graph(general)
    floats = {}
    for pair in [n for n in graph.nodes if n.op_type == "DequantizeLinear"]:
        rounding = graph.producer(pair.input[0])
        if rounding is not None:
            floats[pair.output[0]] = rounding.input[0]
    for node in graph.nodes:
        if node.op_type not in ("Conv", "QuantizeLinear") and _kind(graph, node) not in kinds:
            node.input[:] = [floats.get(name, name) for name in node.input]
    return graph.model()


def _kind(graph: Any, node: Any) -> str:
    """Which of `READERS` a node is; "" for others."""
    makers = {maker.op_type for name in node.input if (maker := graph.producer(name)) is not None}
    if node.op_type in ("Softplus", "Tanh") or (node.op_type == "Mul" and "Tanh" in makers):
        return "mish"
    if node.op_type in ("Mul", "Sigmoid") or (node.op_type == "Add" and _leads_to_sigmoid(graph, node)):
        return "gate"
    kinds = {
        "Relu": "relu", "Add": "residual", "Concat": "concat", "MaxPool": "move", "Resize": "move",
    }  # fmt: skip
    return kinds.get(node.op_type, "")


def _leads_to_sigmoid(graph: Any, node: Any) -> bool:
    """Whether a Sigmoid comes within a few operations, none of which branches."""
    for _ in range(10):
        readers = graph.consumers(node.output[0])
        if len(readers) != 1:
            return False
        (node,) = readers
        if node.op_type == "Sigmoid":
            return True
    return False
