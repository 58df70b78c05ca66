"""Mish by operations that ONNX Runtime has vectorized."""

import numpy as np
from onnx import NodeProto, TensorProto, helper

from unetsharp_engines.rewrites.graph import Graph, name_of
from unetsharp_engines.rewrites.outcome import Outcome

__all__ = ["spell_out_softplus"]


def spell_out_softplus(graph: Graph) -> Outcome:
    """Softplus(x) becomes log(1 + exp x), its definition; Mish(x) becomes x·tanh(log(1 + exp x)).

    ONNX Runtime's CPU provider computes Exp, Log and Tanh in vectors, but Softplus element by element. Beyond the
    floating type's range exp x is infinite, its log too, and tanh gives 1: Mish stays x, never NaN. Below, 1 + exp x
    rounds: the result is off by at most half a unit in the last place of 1. That is nothing in float32 and 5e-4 in
    float16, which is therefore left alone.
    """
    kinds = graph.types()
    spellings = {"Softplus": _spell_softplus, "Mish": _spell_mish}
    found = [(node, kinds[node.input[0]][0]) for node in graph.nodes if node.op_type in spellings]
    fine = [(node, kind) for node, kind in found if kind in (TensorProto.FLOAT, TensorProto.DOUBLE)]
    for node, kind in fine:
        one = graph.add_constant("one", np.array(1, helper.tensor_dtype_to_np_dtype(kind)))
        graph.remove(node)
        spellings[node.op_type](graph, node, one)
    return Outcome(sites=tuple(name_of(node) for node, _ in fine), note=_note(len(found), len(fine)))


def _note(found: int, fine: int) -> str:
    if not found:
        return "the graph holds no Softplus and no Mish"
    return f"{found - fine} are not float32: log(1 + exp x) would lose digits" if found > fine else ""


def _spell_softplus(graph: Graph, node: NodeProto, one: str) -> None:
    _log_one_plus_exp(graph, node, one, node.output[0])


def _spell_mish(graph: Graph, node: NodeProto, one: str) -> None:
    softplus = _log_one_plus_exp(graph, node, one, f"{name_of(node)}/softplus")
    tanh = graph.add("Tanh", [softplus], f"{name_of(node)}/tanh")
    graph.add("Mul", [node.input[0], tanh], node.output[0])


def _log_one_plus_exp(graph: Graph, node: NodeProto, one: str, output: str) -> str:
    exponential = graph.add("Exp", [node.input[0]], f"{name_of(node)}/exp")
    return graph.add("Log", [graph.add("Add", [exponential, one], f"{name_of(node)}/plus_one")], output)
