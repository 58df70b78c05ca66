"""What a bundle says of its network: the precision of each layer, what quantization cost."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from support.tiny_onnx import tiny_onnx
from unetsharp.build.description import contract_facts, layer_precisions, quantization_facts, stain_target_facts
from unetsharp.export.precision import to_fp16
from unetsharp_engines.contract import CLASSES
from unetsharp_engines.errors import InputError
from unetsharp_engines.model_info import QUANTIZATION_KEY


def network(*layers: str) -> onnx.ModelProto:
    """A chain of 1×1 convolutions, each with weights as its letters say: f(loat), h(alf), q(uantized), c(ast)."""
    nodes, constants, value = [], [], "x"
    for number, how in enumerate(layers):
        weights = f"w{number}"
        kind = {"f": np.float32, "h": np.float16, "q": np.int8}[how[0]]
        constants.append(numpy_helper.from_array(np.ones((3, 3, 1, 1), kind), weights))
        if how[0] == "q":
            constants.append(numpy_helper.from_array(np.float32(0.1), f"s{number}"))
            nodes.append(helper.make_node("DequantizeLinear", [weights, f"s{number}"], [f"{weights}q"]))
            weights += "q"
        for to in how[1:]:
            target = {"f": TensorProto.FLOAT, "h": TensorProto.FLOAT16}[to]
            nodes.append(helper.make_node("Cast", [weights], [weights + to], to=target))
            weights += to
        nodes.append(helper.make_node("Conv", [value, weights], [f"y{number}"], name=f"layer{number}"))
        value = f"y{number}"
    graph = helper.make_graph(nodes, "chain", [], [], constants)
    return helper.make_model(graph)


@pytest.mark.parametrize(
    ("layers", "precisions"),
    [
        (["f", "f"], []),
        (["h", "h"], []),
        (["f", "h"], ["fp32", "fp16"]),
        (["q", "f"], ["int8", "fp32"]),
        (["qh", "h"], ["int8", "fp16"]),
        (["hf", "h"], ["fp32", "fp16"]),
        (["fh", "f"], ["fp16", "fp32"]),
        (["q", "q"], []),
    ],
)
def test_precision_by_layer_where_it_is_mixed(layers: list[str], precisions: list[str]) -> None:
    expected = {f"layer{number}": precision for number, precision in enumerate(precisions)}
    assert layer_precisions(network(*layers)) == expected


def test_a_product_of_two_pictures_is_no_layer() -> None:
    model = network("q", "f")
    model.graph.node.append(helper.make_node("MatMul", ["y0", "y1"], ["out"], name="product"))
    assert set(layer_precisions(model)) == {"layer0", "layer1"}


def test_a_network_of_one_precision_has_no_map() -> None:
    assert layer_precisions(tiny_onnx()) == layer_precisions(to_fp16(tiny_onnx())) == {}


@pytest.mark.parametrize("text", ["[]", "{", '{"drift": NaN}', '{"a": 1, "a": 2}', "{" * 50_000])
def test_a_record_of_quantization_that_cannot_be_read_is_refused(text: str) -> None:
    model = tiny_onnx()
    assert quantization_facts(model) is None
    helper.set_model_props(model, {QUANTIZATION_KEY: json.dumps({"method": "mse"})})
    assert quantization_facts(model) == {"method": "mse"}
    helper.set_model_props(model, {QUANTIZATION_KEY: text})
    with pytest.raises(InputError, match="record of its quantization cannot be read"):
        quantization_facts(model)


def test_contract_and_stain_target_survive_json() -> None:
    for facts in (contract_facts(), stain_target_facts()):
        assert json.loads(json.dumps(facts)) == facts
    assert contract_facts()["channels"] == [tissue.name for tissue in CLASSES]
