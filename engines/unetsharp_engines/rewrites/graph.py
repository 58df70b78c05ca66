"""An ONNX graph opened for rewriting: nodes in a list, weights as arrays, and who makes and reads each value."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from unetsharp_engines.rewrites.plugin_node import is_plugin, stand_in

__all__ = ["Array", "Graph", "Shape", "attributes", "name_of"]

Array = npt.NDArray[Any]

Shape = tuple[int | None, ...]
"""None is a dimension that is not fixed, as the batch."""

_SMALL = 64
"""Constants of up to so many elements stay in the skeleton that shapes are inferred on: they may be sizes."""


class Graph:
    """A copy of a model that passes edit; `model` gives the result.

    Nodes may be appended in any order and left behind unused: `model` sorts them and drops what no output needs.
    """

    def __init__(self, model: ModelProto) -> None:
        constants = [n for n in model.graph.node if n.op_type == "Constant" and n.attribute[0].name == "value"]
        self.constants: dict[str, Array] = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        """Weights by name; Constant nodes are among them."""
        self.constants |= {n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in constants}
        self.nodes: list[NodeProto] = [_copied(n) for n in model.graph.node if n not in constants]
        self._frame = _frame_of(model)
        self.inputs: tuple[str, ...] = tuple(v.name for v in self._frame.graph.input)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs."""
        return tuple(value.name for value in self._frame.graph.output)

    def producer(self, value: str) -> NodeProto | None:
        """The node that makes ``value``; None for an input, a weight or an empty name."""
        return next((n for n in self.nodes if value and value in n.output), None)

    def consumers(self, value: str) -> list[NodeProto]:
        """The nodes that read ``value``, once each."""
        return [n for n in self.nodes if value in n.input]

    def is_read_only_by(self, value: str, *readers: NodeProto) -> bool:
        """Whether ``readers`` are all that ``value`` serves: no other node reads it, and it is no output."""
        return value not in self.outputs and _same(self.consumers(value), readers)

    def add_constant(self, name: str, array: Array) -> str:
        """Keep ``array`` under ``name``, or under a name made of it if another array has that; returns the name."""
        while name in self.constants and not _equal(self.constants[name], array):
            name += "_"
        self.constants[name] = np.asarray(array, order="C")  # ascontiguousarray would make a vector of a number
        return name

    def add(self, op_type: str, inputs: Iterable[str], output: str, **attributes: Any) -> str:
        """Append a node named after its one ``output``, which is returned."""
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], name=output, **attributes))
        return output

    def import_domain(self, domain: str) -> None:
        """Let the model hold nodes of ``domain``, version 1."""
        if domain not in {used.domain for used in self._frame.opset_import}:
            self._frame.opset_import.append(helper.make_opsetid(domain, 1))

    def remove(self, node: NodeProto) -> None:
        """Take ``node`` out; whoever reads its outputs must be served otherwise."""
        self.nodes = [n for n in self.nodes if n is not node]

    def redirect(self, old: str, new: str) -> None:
        """Let every reader of ``old`` read ``new``. ``old`` must be no output of the graph."""
        for node in self.consumers(old):
            node.input[:] = [new if name == old else name for name in node.input]

    def set_output(self, old: str, new: str, elem_type: int, shape: list[int | str | None]) -> None:
        """Make ``new`` the graph's output in ``old``'s place."""
        outputs = [
            helper.make_tensor_value_info(new, elem_type, shape) if v.name == old else v
            for v in self._frame.graph.output
        ]
        del self._frame.graph.output[:]
        self._frame.graph.output.extend(outputs)

    def shapes(self, batch: int | None = None) -> dict[str, Shape]:
        """Shapes of all values that shape inference knows, weights included, with the first input dimension set to
        ``batch`` if given."""
        return {name: shape for name, (_, shape) in self.types(batch).items()}

    def types(self, batch: int | None = None) -> dict[str, tuple[int, Shape]]:
        """Element type (`onnx.TensorProto.DataType`) and shape of all values; see `shapes`. Prunes the graph first."""
        self.prune()
        inferred = shape_inference.infer_shapes(self._skeleton(batch), data_prop=True).graph
        values = (*inferred.input, *inferred.output, *inferred.value_info)
        known = {v.name: _type_of(v) for v in values if v.type.tensor_type.HasField("shape")}
        weights = {n: (helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in self.constants.items()}
        return known | weights

    def metadata(self) -> dict[str, str]:
        """The model's ``metadata_props``."""
        return {p.key: p.value for p in self._frame.metadata_props}

    def set_metadata(self, key: str, value: str) -> None:
        """Set one of the model's ``metadata_props``."""
        helper.set_model_props(self._frame, {**self.metadata(), key: value})

    def prune(self) -> None:
        """Drop nodes and weights that no output needs, and put nodes after what they read."""
        self.nodes = _sorted(self.nodes, self.outputs)
        used = {name for node in self.nodes for name in node.input} | set(self.outputs)
        self.constants = {name: array for name, array in self.constants.items() if name in used}

    def model(self) -> ModelProto:
        """The graph as it is now, as a model."""
        self.prune()
        model = _copied_model(self._frame)
        model.graph.node.extend(self.nodes)
        model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in self.constants.items())
        return model

    def _skeleton(self, batch: int | None) -> ModelProto:
        """The graph with large weights as inputs: shape inference copies the model, and weights may be 200 MB."""
        model = _copied_model(self._frame)
        for node in self.nodes:
            if is_plugin(node):
                node, weight = stand_in(node, len(self.constants[node.input[1]]))
                model.graph.input.append(weight)
            model.graph.node.append(node)
        for name, array in self.constants.items():
            if array.size <= _SMALL:
                model.graph.initializer.append(numpy_helper.from_array(array, name))
            else:
                kind = helper.np_dtype_to_tensor_dtype(array.dtype)
                model.graph.input.append(helper.make_tensor_value_info(name, kind, array.shape))
        if batch is not None:
            _fix_batch(model, self.inputs, batch)
        return model


def attributes(node: NodeProto) -> dict[str, Any]:
    """A node's attributes by name; text is decoded."""
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {name: v.decode() if isinstance(v, bytes) else v for name, v in values.items()}


def name_of(node: NodeProto) -> str:
    """What a node is called in reports: its name, or its first output's where it has none."""
    return node.name or node.output[0]


def _frame_of(model: ModelProto) -> ModelProto:
    """The model without nodes, weights and inferred shapes: inputs, outputs, opsets, metadata."""
    frame = ModelProto()
    for field in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(frame, field, getattr(model, field))
    frame.opset_import.extend(model.opset_import)
    frame.metadata_props.extend(model.metadata_props)
    frame.graph.name = model.graph.name
    weights = {t.name for t in model.graph.initializer}
    frame.graph.input.extend(v for v in model.graph.input if v.name not in weights)
    frame.graph.output.extend(model.graph.output)
    return frame


def _fix_batch(model: ModelProto, inputs: Iterable[str], batch: int) -> None:
    for value in model.graph.input:
        if value.name in inputs:
            value.type.tensor_type.shape.dim[0].dim_value = batch
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")


def _sorted(nodes: list[NodeProto], outputs: Iterable[str]) -> list[NodeProto]:
    """The nodes that ``outputs`` need, each after what it reads; otherwise in their order."""
    position = {name: i for i, node in enumerate(nodes) for name in node.output}
    order: list[int] = []
    done: set[int] = set()
    pending = [(position[name], False) for name in reversed(list(outputs)) if name in position]
    while pending:
        index, ready = pending.pop()
        if ready:
            order.append(index)
        elif index not in done:
            done.add(index)
            pending.append((index, True))
            pending.extend((position[name], False) for name in reversed(nodes[index].input) if name in position)
    return [nodes[i] for i in order]


def _type_of(value: onnx.ValueInfoProto) -> tuple[int, Shape]:
    tensor = value.type.tensor_type
    sides = (d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    return tensor.elem_type or TensorProto.UNDEFINED, tuple(sides)


def _same(nodes: Iterable[NodeProto], others: Iterable[NodeProto]) -> bool:
    return {id(n) for n in nodes} == {id(n) for n in others}


def _equal(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and np.array_equal(a, b)


def _copied(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _copied_model(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy
