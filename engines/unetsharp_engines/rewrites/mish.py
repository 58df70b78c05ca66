"""Mish by operations that ONNX Runtime has vectorized."""

import numpy as np
from onnx import NodeProto, TensorProto, helper

from unetsharp_engines.rewrites.graph import Array, Graph, name_of
from unetsharp_engines.rewrites.outcome import Outcome

__all__ = ["spell_mish_by_exp", "under_mish"]

_CAPS: dict[int, float] = {TensorProto.FLOAT16: 5.0, TensorProto.FLOAT: 20.0, TensorProto.DOUBLE: 20.0}
"""From here on e(e + 2) / (e(e + 2) + 2) is one: 1 - 9e-18 in float32 and float64; in float16, where from 5 on it is
1 - 9e-5 and less away from one than half a step, while e(e + 2) = 22,324 is still far from overflow."""


def spell_mish_by_exp(graph: Graph) -> Outcome:
    """tanh(softplus x) becomes e(e + 2) / (e(e + 2) + 2) with e = exp x, and Mish(x) is x times that.

    softplus x = log(1 + e), and tanh y = (u² - 1) / (u² + 1) for u = exp y; here u = 1 + e, and u² - 1 = e(e + 2).
    e is taken of min(x, 20), in float16 of min(x, 5), where the quotient has rounded to 1, so that it cannot become
    infinite. No term cancels: the result is as good relatively, for negative x too, as log(1 + exp x), which loses the
    digits of a small e to the 1, is not. ONNX Runtime's CPU provider computes Exp in vectors, but Softplus one by one;
    TensorRT-RTX fuses these operations into the convolution before them, but Softplus not.
    """
    kinds = graph.types()
    found = [node for node in graph.nodes if node.op_type == "Mish" or _is_softplus_of_mish(graph, node)]
    fine = [node for node in found if kinds[node.input[0]][0] in _CAPS]
    for node in fine:
        (_spell_mish if node.op_type == "Mish" else _spell_tanh_softplus)(graph, node, kinds[node.input[0]][0])
    return Outcome(sites=tuple(name_of(node) for node in fine), note=_note(len(found), len(fine)))


def under_mish(graph: Graph, value: str) -> str | None:
    """The x of which ``value`` is the Mish, however it is spelt; None if it is none."""
    if mish := _inputs(graph, value, "Mish"):
        return mish[0]
    factors = _inputs(graph, value, "Mul")
    pairs = [*zip(factors, factors[::-1], strict=True)]
    return next((x for x, other in pairs if _is_tanh_softplus(graph, other, x) or _is_by_exp(graph, other, x)), None)


def _is_tanh_softplus(graph: Graph, value: str, x: str) -> bool:
    return any(x in _inputs(graph, softplus, "Softplus") for softplus in _inputs(graph, value, "Tanh"))


def _is_by_exp(graph: Graph, value: str, x: str) -> bool:
    """Whether it is what `_quotient` makes of ``x``."""
    numerator, denominator = _inputs(graph, value, "Div") or ("", "")
    e, e_and_two = _inputs(graph, numerator, "Mul") or ("", "")
    (capped,) = _inputs(graph, e, "Exp") or ("",)
    of, cap = _inputs(graph, capped, "Min") or ("", "")
    return (
        of == x
        and any(_is(graph, cap, c) for c in _CAPS.values())
        and (_is_two_more(graph, e_and_two, e) and _is_two_more(graph, denominator, numerator))
    )


def _is_two_more(graph: Graph, value: str, than: str) -> bool:
    term, two = _inputs(graph, value, "Add") or ("", "")
    return term == than and _is(graph, two, 2.0)


def _is(graph: Graph, name: str, number: float) -> bool:
    return name in graph.constants and graph.constants[name].shape == () and graph.constants[name] == number


def _inputs(graph: Graph, value: str, op_type: str) -> list[str]:
    """Of the node that makes ``value``, if that is an ``op_type``."""
    node = graph.producer(value)
    return list(node.input) if node is not None and node.op_type == op_type else []


def _note(found: int, fine: int) -> str:
    if not found:
        return "the graph holds no Mish"
    return f"{found - fine} are of a type with another range" if found > fine else ""


def _is_softplus_of_mish(graph: Graph, node: NodeProto) -> bool:
    """Whether it is a Softplus that only a Tanh reads."""
    if node.op_type != "Softplus":
        return False
    readers = graph.consumers(node.output[0])
    return [r.op_type for r in readers] == ["Tanh"] and graph.is_read_only_by(node.output[0], *readers)


def _spell_tanh_softplus(graph: Graph, softplus: NodeProto, kind: int) -> None:
    (tanh,) = graph.consumers(softplus.output[0])
    graph.remove(softplus)
    graph.remove(tanh)
    _quotient(graph, softplus, kind, tanh.output[0])


def _spell_mish(graph: Graph, mish: NodeProto, kind: int) -> None:
    graph.remove(mish)
    quotient = _quotient(graph, mish, kind, f"{name_of(mish)}/quotient")
    graph.add("Mul", [mish.input[0], quotient], mish.output[0])


def _quotient(graph: Graph, node: NodeProto, kind: int, output: str) -> str:
    """Add e(e + 2) / (e(e + 2) + 2) of the input of ``node``."""
    name, x = name_of(node), node.input[0]

    def constant(called: str, value: float) -> str:
        array: Array = np.array(value, helper.tensor_dtype_to_np_dtype(kind))
        return graph.add_constant(called, array)

    two = constant("two", 2.0)
    e = graph.add("Exp", [graph.add("Min", [x, constant("cap", _CAPS[kind])], f"{name}/capped")], f"{name}/exp")
    numerator = graph.add("Mul", [e, graph.add("Add", [e, two], f"{name}/exp_plus_two")], f"{name}/numerator")
    denominator = graph.add("Add", [numerator, two], f"{name}/denominator")
    return graph.add("Div", [numerator, denominator], output)
