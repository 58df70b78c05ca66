"""Mish by operations that ONNX Runtime has vectorized."""

import numpy as np
from onnx import NodeProto, helper

from unetsharp_engines.rewrites.graph import Graph, name_of
from unetsharp_engines.rewrites.outcome import Outcome

__all__ = ["spell_out_softplus"]


def spell_out_softplus(graph: Graph) -> Outcome:
    """Softplus(x) becomes log(1 + exp x), its definition; Mish(x) becomes x·tanh(log(1 + exp x)).

    ONNX Runtime's CPU provider computes Exp, Log and Tanh in vectors, but Softplus element by element. Beyond the
    floating type's range exp x is infinite, its log too, and tanh gives 1: Mish stays x, never NaN. Below, 1 + exp x
    rounds: the result is off by at most half a unit in the last place of 1.
    """
    softplus = [node for node in graph.nodes if node.op_type == "Softplus"]
    mish = [node for node in graph.nodes if node.op_type == "Mish"]
    kinds = graph.types()
    for node in (*softplus, *mish):
        one = np.array(1, helper.tensor_dtype_to_np_dtype(kinds[node.input[0]][0]))
        (_spell_softplus if node.op_type == "Softplus" else _spell_mish)(graph, node, graph.add_constant("one", one))
    sites = tuple(name_of(node) for node in (*softplus, *mish))
    return Outcome(sites=sites, note="" if sites else "the graph holds no Softplus and no Mish")


def _spell_softplus(graph: Graph, node: NodeProto, one: str) -> None:
    graph.remove(node)
    _log_one_plus_exp(graph, node, one, node.output[0])


def _spell_mish(graph: Graph, node: NodeProto, one: str) -> None:
    graph.remove(node)
    softplus = _log_one_plus_exp(graph, node, one, f"{name_of(node)}/softplus")
    tanh = graph.add("Tanh", [softplus], f"{name_of(node)}/tanh")
    graph.add("Mul", [node.input[0], tanh], node.output[0])


def _log_one_plus_exp(graph: Graph, node: NodeProto, one: str, output: str) -> str:
    exponential = graph.add("Exp", [node.input[0]], f"{name_of(node)}/exp")
    return graph.add("Log", [graph.add("Add", [exponential, one], f"{name_of(node)}/plus_one")], output)
