"""Which TensorRT takes an ONNX: TensorRT-RTX's own parser run, the others by their documentation."""

import importlib.util
from collections import Counter
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from support.tiny_onnx import save_tiny_onnx, tiny_onnx
from unetsharp.build import flavours
from unetsharp.export.precision import to_fp16
from unetsharp.inspection import look_at, parsing
from unetsharp_engines.errors import InputError, MissingCapabilityError
from unetsharp_engines.rewrites import rewrite

RELEASES = ("TensorRT 8.6", "TensorRT 10.1", "TensorRT 10.15", "TensorRT 11")
HAS_RTX = importlib.util.find_spec("tensorrt_rtx") is not None
needs_rtx = pytest.mark.skipif(not HAS_RTX, reason="TensorRT-RTX is not installed: pip install 'unetsharp[rtx]'")


def problems(tmp_path: Path, model: onnx.ModelProto) -> dict[str, Any]:
    """By parser, without RTX's version."""
    onnx.save(model, tmp_path / "model.onnx")
    return {entry["parser"].split(" 1.")[0]: entry["problems"] for entry in _parsers(tmp_path / "model.onnx")}


def _parsers(path: Path) -> Any:
    return look_at(path)["parsers"]


def one_node(op: str, inputs: dict[str, int], out: int = TensorProto.FLOAT, opset: int = 17, **options: Any) -> Any:
    """A network of one node; ``inputs`` are element types by name."""
    node = helper.make_node(op, list(inputs), ["y"], name="the_node", **options)
    values = [helper.make_tensor_value_info(name, kind, [1, 3, 8, 8]) for name, kind in inputs.items()]
    graph = helper.make_graph([node], "one", values, [helper.make_tensor_value_info("y", out, None)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize("change", [lambda model: model, to_fp16])
def test_what_is_exported_is_taken_by_all(tmp_path: Path, change: Callable[[Any], Any]) -> None:
    found = problems(tmp_path, change(tiny_onnx()))
    assert tuple(found) == (*RELEASES, "TensorRT-RTX")
    assert [found[release] for release in RELEASES] == [[]] * 4
    assert found["TensorRT-RTX"] == ([] if HAS_RTX else None)


def test_the_shipped_network_is_taken_by_all() -> None:
    for entry in _parsers(Path(str(files("unetsharp") / "assets" / "edge.onnx"))):
        assert entry["problems"] == ([] if entry["parser"] in RELEASES or HAS_RTX else None)


def test_each_says_how_it_is_known(tmp_path: Path) -> None:
    entries = _parsers(save_tiny_onnx(tmp_path / "model.onnx"))
    for entry in entries[:4]:
        assert entry["known_by"] == "its documentation; not run"
        assert entry["source"].startswith("https://")
    assert ("its own parser, run here" in entries[4]["known_by"]) is HAS_RTX


def test_the_mish_operator_came_with_opset_18_and_after_8_6(tmp_path: Path) -> None:
    found = problems(tmp_path, one_node("Mish", {"x": TensorProto.FLOAT}, opset=18))
    assert found["TensorRT 8.6"] == ["opset 18, and it takes 7 to 17", "Mish is none of its operators"]
    assert [found[release] for release in RELEASES[1:]] == [[]] * 3


@pytest.mark.parametrize(
    ("opset", "taken"), [(6, []), (7, RELEASES[:1]), (17, RELEASES), (20, RELEASES[1:]), (24, RELEASES[2:])]
)
def test_opsets(tmp_path: Path, opset: int, taken: list[str]) -> None:
    model = one_node("Relu", {"x": TensorProto.FLOAT}, opset=opset)
    found = {
        release: parsing.documented(model, release, {"x": TensorProto.FLOAT, "y": TensorProto.FLOAT})
        for release in RELEASES
    }
    assert [release for release, told in found.items() if not told] == list(taken)


@pytest.mark.parametrize(
    ("op", "kind", "release", "says"),
    [
        ("Relu", TensorProto.BFLOAT16, "TensorRT 8.6", "Relu of BF16, and it takes FP16, FP32, INT8"),
        ("Relu", TensorProto.BFLOAT16, "TensorRT 10.1", ""),
        ("Relu", TensorProto.DOUBLE, "TensorRT 10.15", ""),
        ("Neg", TensorProto.INT64, "TensorRT 8.6", ""),
        ("Neg", TensorProto.INT8, "TensorRT 10.1", "Neg of INT8, and it takes BF16, FP16, FP32, INT32, INT64"),
        ("Det", TensorProto.FLOAT, "TensorRT 11", "Det is none of its operators"),
    ],
)
def test_types_and_operators(op: str, kind: int, release: str, says: str) -> None:
    model = one_node(op, {"x": kind}, out=kind)
    assert parsing.documented(model, release, {"x": kind}) == ([says] if says else [])


def quantizing(zero_point: int, *, kind: type[Any] = np.int8, scale: float = 0.1) -> onnx.ModelProto:
    constants = [
        numpy_helper.from_array(np.float32(scale), "scale"),
        numpy_helper.from_array(np.array(zero_point, kind), "zero"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8]) for name in "xy"]
    graph = helper.make_graph(nodes, "q", values[:1], values[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_quantization_is_symmetric_and_signed(tmp_path: Path) -> None:
    assert [problems(tmp_path, quantizing(0))[release] for release in RELEASES] == [[]] * 4
    for release in RELEASES:
        shifted = problems(tmp_path, quantizing(3))[release]
        assert shifted == [f"{end}Linear with a zero point other than 0" for end in ("Quantize", "Dequantize")]
        (unsigned,) = problems(tmp_path, quantizing(0, kind=np.uint8))[release]
        assert unsigned.startswith("DequantizeLinear of UINT8, and it takes ")


def test_a_zero_point_that_is_elsewhere_or_not_whole_is_not_told_of(tmp_path: Path) -> None:
    cut, elsewhere = quantizing(0), quantizing(0)
    cut.graph.initializer[1].ClearField("raw_data")
    elsewhere.graph.initializer[1].ClearField("raw_data")
    elsewhere.graph.initializer[1].data_location = TensorProto.EXTERNAL
    for model in (cut, elsewhere):
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        assert [entry["problems"] for entry in _parsers(tmp_path / "model.onnx")[: len(RELEASES)]] == [[]] * 4


def test_a_bias_kept_as_int32_is_refused(tmp_path: Path) -> None:
    model = one_node("DequantizeLinear", {"x": TensorProto.INT32, "scale": TensorProto.FLOAT})
    for release in RELEASES:
        assert "DequantizeLinear of INT32" in parsing.documented(model, release, {"x": TensorProto.INT32})[0]


def test_cubic_resize_is_refused() -> None:
    model = one_node("Resize", {"x": TensorProto.FLOAT, "": 0, "scales": TensorProto.FLOAT}, mode="cubic")
    assert parsing.documented(model, "TensorRT 10.15", {}) == ["Resize of mode cubic, and it takes nearest and linear"]


def test_equal_problems_are_counted() -> None:
    model = tiny_onnx()
    for node in model.graph.node:
        if node.op_type == "Conv":
            node.op_type, node.domain = "Mystery", "example.org"
    assert parsing.documented(model, "TensorRT 8.6", {}) == ["Mystery of example.org needs a plugin (2 nodes)"]


@pytest.mark.parametrize(("release", "takes"), [*zip(RELEASES, (False, False, True, True), strict=True)])
def test_our_own_kernel_is_taken_from_10_9_on(release: str, takes: bool) -> None:
    shipped = files("unetsharp.assets").joinpath("edge.onnx").read_bytes()
    model, _ = rewrite(onnx.ModelProto.FromString(shipped), ["deep-one-kernel"])
    refusals = [] if takes else ["UpsampleShiftAddMish of unetsharp needs a plugin (6 nodes)"]
    assert parsing.documented(model, release, {}) == refusals


@needs_rtx
def test_its_own_parser_names_the_node(tmp_path: Path) -> None:
    model = tiny_onnx()
    next(node for node in model.graph.node if node.name == "mish").op_type = "Mishmash"
    onnx.save(model, tmp_path / "model.onnx")
    told = _parsers(tmp_path / "model.onnx")[-1]["problems"]
    assert told[0].startswith("node 'mish' (Mishmash): ")
    assert all("\n" not in line for line in told)


def test_without_its_parser_nothing_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: flavours.Flavour) -> Any:
        raise MissingCapabilityError("not here")

    monkeypatch.setattr(parsing, "load", missing)
    entry = _parsers(save_tiny_onnx(tmp_path / "model.onnx"))[-1]
    assert entry["problems"] is None
    assert "pip install 'unetsharp[rtx]' brings it" in entry["known_by"]


def test_the_tables_name_every_operator_once() -> None:
    for release in RELEASES[:3]:
        names = Counter(" ".join(parsing._tables()[release]["operators"].values()).split())
        assert [name for name, count in names.items() if count > 1] == []
        assert {"Conv", "Resize", "Softplus", "Tanh", "QuantizeLinear", "DequantizeLinear", "MatMul"} <= set(names)
    assert parsing._operators("TensorRT 11") == parsing._operators("TensorRT 10.15")


@given(data=st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_to_an_onnx_gets_past_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.setattr(parsing, "_run_rtx", lambda _: {"parser": "", "problems": None, "known_by": "", "source": ""})
    content = bytearray(tiny_onnx().SerializeToString())
    for at in data.draw(st.lists(st.integers(1, 900), min_size=1, max_size=4)):
        content[at] = data.draw(st.integers(0, 255))
    (tmp_path / "model.onnx").write_bytes(bytes(content))
    try:
        look_at(tmp_path / "model.onnx")
    except InputError as error:
        assert "\n" not in str(error)


def test_a_tensor_of_a_type_that_onnx_lacks_is_refused(tmp_path: Path) -> None:
    model = tiny_onnx()
    model.graph.initializer[0].data_type = 29
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="a tensor of type 29, which ONNX lacks"):
        look_at(tmp_path / "model.onnx")
