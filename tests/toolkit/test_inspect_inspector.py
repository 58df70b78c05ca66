"""The layers of TensorRT's engines: asked of it when it builds, kept in the bundle, shown anywhere."""

import dataclasses
import json
import re
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from support.bundles import ENGINE, ONNX, engine_entry, manifest_of, own
from support.strict_tensorrt import VERSIONS, strict_tensorrt
from support.tiny_onnx import save_tiny_onnx
from unetsharp import machine
from unetsharp.build import trust
from unetsharp.build.builder import Tuning
from unetsharp.build.bundle import Bundle, file_entry, open_bundle, problems_of, write_bundle
from unetsharp.build.pipeline import BuildOptions, build_bundle
from unetsharp.cli.app import app
from unetsharp.cli.output import Output, Verbosity
from unetsharp.inspection import look_at
from unetsharp.inspection.inspector_json import layers_in
from unetsharp.inspection.layers import Layer
from unetsharp_engines.errors import InputError

QUIET = Output(verbosity=Verbosity.QUIET)
BATCH = 4
AUTOTUNING = [which for which in VERSIONS if "rtx" not in which]


def tensor(name: str, sides: list[int], kind: str, key: str = "Format/Datatype") -> dict[str, Any]:
    return {"Name": name, "Location": "Device", "Dimensions": sides, key: kind}


IMAGE = tensor("image", [BATCH, 3, 64, 64], "Row major linear FP32")
PACKED = tensor("packed", [BATCH, 3, 64, 64], "Channel major FP16 format where channel % 4 == 0")
STEM = tensor("stem_out", [BATCH, 4, 32, 32], "Channel major FP16 format where channel % 8 == 0")
SENTENCES = {
    "Layers": [
        {"Name": "Reformat image", "LayerType": "Reformat", "Inputs": [IMAGE], "Outputs": [PACKED]},
        {
            "Name": "stem + PWN(PWN(softplus, tanh), mish)",
            "LayerType": "CaskConvolution",
            "Inputs": [PACKED],
            "Outputs": [STEM],
            "ParameterType": "Convolution",
            "Weights": {"Type": "Half", "Count": 108},
            "Bias": {"Type": "Half", "Count": 4},
            "TacticName": "sm80_xmma_fprop_implicit_gemm_f16",
            "Metadata": "[ONNX Layer: stem]\x1e[ONNX Layer: softplus]",
        },
        {"Name": "again", "LayerType": "NoOp", "Inputs": [STEM], "Outputs": [STEM]},
        {
            "Name": "pool",
            "LayerType": "CudaPooling",
            "PoolingType": "MAX",
            "Inputs": [STEM],
            "Outputs": [tensor("q", [BATCH, 4, 16, 16], "Thirty-two wide channel vectorized row major Int8 format")],
        },
        {"Name": "norm", "LayerType": "Scale", "Inputs": [STEM], "Outputs": [STEM]},
    ],
    "Bindings": ["image", "logits"],
}
"""As TensorRT 8.2 to 8.6 put it in the examples of NVIDIA's engine explorer (written here by hand)."""

WORDS = {
    "Layers": [
        {
            "Name": "stem_myl0_1",
            "LayerType": "conv",
            "Inputs": [tensor("image", [BATCH, 3, 64, 64], "Half")],
            "Outputs": [tensor("__mye1", [BATCH, 4, 32, 32], "Half")],
            "Constants": [tensor("w", [4, 3, 3, 3], "Half")],
            "TacticName": "sm90_xmma_fprop",
            "StreamId": 0,
            "Metadata": "[ONNX Layer: stem]",
        },
        {
            "Name": "__myl_MulAddResi_myl0_2",
            "LayerType": "kgen",
            "Inputs": [tensor("__mye1", [BATCH, 4, 32, 32], "Half")],
            "Outputs": [tensor("__mye2", [BATCH, 4, 64, 64], "BFloat16")],
            "TacticName": "__myl_MulAddResi_0x0123ABCD",
            "Metadata": "[ONNX Layer: norm]\x1f[ONNX Layer: resize]",
        },
        {
            "Name": "head",
            "LayerType": "gemm",
            "Inputs": [tensor("__mye2", [BATCH, 4, 64, 64], "BFloat16", key="Datatype")],
            "Outputs": [tensor("logits", [BATCH, 6, 64, 64], "Float", key="Datatype")],
        },
    ]
}
"""As TensorRT 10 puts it, by what NVIDIA's engine explorer reads and users report (written here by hand)."""


def read(told: object) -> tuple[Layer, ...]:
    return layers_in(json.dumps(told).encode(), "engine")


def test_types_in_sentences() -> None:
    reformat, stem, nothing, pool, norm = read(SENTENCES)
    assert (reformat.kind, reformat.read, reformat.written) == ("reformat", 4 * 3 * 64**2, 2 * 3 * 64**2)
    assert (stem.kind, stem.precision, stem.shape) == ("convolution", "fp16", (1, 4, 32, 32))
    assert (stem.read, stem.written, stem.weights) == (2 * 3 * 64**2, 2 * 4 * 32**2, 2 * 112)
    assert (stem.tactic, stem.nodes) == ("sm80_xmma_fprop_implicit_gemm_f16", ("stem", "softplus"))
    assert (nothing.kind, nothing.read, nothing.written) == ("NoOp", 0, 0), "nothing runs for it"
    assert (pool.kind, pool.precision, pool.written) == ("max-pool", "int8", 4 * 16**2)
    assert norm.kind == "Scale"


def test_types_in_words() -> None:
    stem, fused, head = read(WORDS)
    assert (stem.kind, stem.precision, stem.weights, stem.written) == ("convolution", "fp16", 2 * 108, 2 * 4 * 32**2)
    assert (fused.kind, fused.precision, fused.nodes) == ("BatchNorm + resize", "bf16", ("norm", "resize"))
    assert (head.kind, head.precision, head.read, head.written) == (
        "matrix product", "fp32", 2 * 4 * 64**2, 4 * 6 * 64**2,
    )  # fmt: skip


def test_what_the_engine_does_not_tell() -> None:
    """Names alone, as without details; sizes that depend on the batch, as without a context; other sides that do."""
    alone, free = read({"Layers": ["Reformat image", {"Name": "x", "Outputs": [tensor("y", [-1, 4, 8, 8], "Half")]}]})
    assert (alone.name, alone.kind, alone.precision, alone.shape, alone.written) == (
        "Reformat image",
        "layer",
        "",
        (),
        0,
    )
    assert (free.shape, free.written) == ((1, 4, 8, 8), 2 * 4 * 64)
    odd = [
        tensor("y", [1, -1, 8], "Half"),
        tensor("y", [1, 4], "N/A due to dynamic shapes"),
        tensor("y", [10**400], "Half"),
        {"Name": "y"},
    ]
    assert [layer.written for layer in read({"Layers": [{"Outputs": [told]} for told in odd]})] == [0] * 4


def test_no_text_steers_the_terminal() -> None:
    (layer,) = read({"Layers": [{"Name": "a\x1b[2Jb\n", "LayerType": "c\x07", "TacticName": 7}]})
    assert (layer.name, layer.kind, layer.tactic) == ("a [2Jb ", "c ", "")


@pytest.mark.parametrize(
    "content",
    [
        b'{"Layers": [' + b"7," * (1 << 14) + b"7]}",
        b'{"Layers": []' + b" " * (1 << 24) + b"}",
        b'{"Layers": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"Layers": [' + b"9" * 5_000 + b"]}",
    ],
    ids=["too many", "too long", "too deep", "too large a number"],
)
def test_what_would_exhaust_its_reader_is_refused(content: bytes) -> None:
    with pytest.raises(InputError, match="engine: not what TensorRT says"):
        layers_in(content, "engine")


def test_names_without_end_take_no_time() -> None:
    start = time.process_time()
    (layer,) = read({"Layers": [{"Metadata": "[ONNX Layer: " * 20_000}]})
    assert (layer.nodes, time.process_time() - start < 10) == ((), True)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*SENTENCES["Layers"][1], "Count", "x"]), inner),
    max_leaves=20,
)


@given(told=st.lists(json_values) | json_values, raw=st.none() | st.binary())
def test_anything_else_is_refused_or_not_told(told: Any, raw: bytes | None) -> None:
    try:
        layers_in(json.dumps({"Layers": told}).encode() if raw is None else raw, "engine")
    except InputError as error:
        assert str(error).isprintable()
        assert "engine: not what TensorRT says" in str(error)


class Builder:
    """Builds an engine."""

    def __init__(self, log: Any) -> None:
        pass

    def build_serialized_network(self, network: Any, config: Any) -> bytes:
        return b"ftrt" + bytes(60)


class Runtime:
    """Loads it, unless it brings host code that is not allowed."""

    engine_host_code_allowed = False

    def __init__(self, log: Any) -> None:
        pass

    def deserialize_cuda_engine(self, content: bytes) -> "Engine":
        return Engine()


class Engine:
    """Has the tensors of a network of ours."""

    num_io_tensors = 2

    def get_tensor_name(self, index: int) -> str:
        return ("logits", "image")[index]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(1, 3, 64, 64), (BATCH, 3, 64, 64), (8, 3, 64, 64)]

    def create_engine_inspector(self) -> "Inspector":
        return Inspector()


class Inspector:
    """Tells everything of a context whose shape is set."""

    execution_context: Any = None

    def get_engine_information(self, how: Any) -> str:
        assert how.name == "JSON"
        assert self.execution_context is not None
        return json.dumps(SENTENCES).replace("\\u001e", "\x1e")  # as it comes: JSON wants that escaped


class Silent(Inspector):
    """Tells nothing."""

    def get_engine_information(self, how: Any) -> str:
        return ""


def machine_with(patch: pytest.MonkeyPatch, which: str, **doubles: Any) -> list[tuple[str, Any]]:
    """Let this machine have a GPU and the TensorRT called ``which``; the list tells what that is told."""
    patch.setattr(machine, "gpus", lambda: (machine.Gpu(name="H100", target="sm90", memory_bytes=1 << 33),))
    standing = {"Builder": Builder, "Runtime": Runtime, "EngineInspector": Inspector}
    module, log = strict_tensorrt(which, **(standing | doubles))
    patch.setitem(sys.modules, "tensorrt", module)  # type: ignore[arg-type]
    return log


def built(tmp_path: Path, **options: Any) -> Bundle:
    source = save_tiny_onnx(tmp_path / "m.onnx")
    return build_bundle(source, tmp_path / "bundle", BuildOptions(runtime="tensorrt", **options), QUIET)


@pytest.mark.parametrize("which", AUTOTUNING)
def test_a_bundle_keeps_what_tensorrt_says_of_its_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    with monkeypatch.context() as patch:
        log = machine_with(patch, which)
        bundle = built(tmp_path, tuning=Tuning(version_compatible=True))
    assert ("set_input_shape", ("image", (BATCH, 3, 64, 64))) in log
    assert ("engine_host_code_allowed", True) in log
    (engine,) = bundle.manifest.engines
    assert engine.inspected is not None
    assert engine.inspected.path == engine.file.path.removesuffix(".plan") + ".layers.json"
    assert bundle.is_trusted(engine)
    assert re.fullmatch(r"[\d.]+", engine.version), "bindings may have a version of their own, as 10.13.3.9.post1"
    drawing = tmp_path / "layers.svg"
    done = CliRunner().invoke(app, ["inspect", str(bundle.root), "--picture", str(drawing)])
    assert done.exit_code == 0, done.output
    assert "convolution" in done.stdout
    facts = look_at(bundle.root)
    assert facts["layers_of"] == engine.file.path
    assert [layer["name"] for layer in facts["layers"]] == [layer["Name"] for layer in SENTENCES["Layers"]]
    titles = [element.text or "" for element in ET.parse(drawing).iter() if element.tag.endswith("title")]
    assert any("sm80_xmma_fprop_implicit_gemm_f16" in title and "1×4×32×32 fp16" in title for title in titles)


def test_an_engine_that_tells_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        machine_with(patch, "tensorrt 10.3", EngineInspector=Silent)
        patch.setattr(Engine, "create_engine_inspector", lambda _: Silent())
        bundle = built(tmp_path)
    assert bundle.manifest.engines[0].inspected is None
    assert "TensorRT 10.3.0 does not tell the engine's layers" in capsys.readouterr().err
    assert "layers" not in look_at(bundle.root)


def test_an_engine_is_kept_where_the_runtime_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(log: Any) -> Any:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    with monkeypatch.context() as patch:
        machine_with(patch, "tensorrt 11.4", Runtime=refuse)
        (engine,) = built(tmp_path).manifest.engines
    assert engine.inspected is None
    assert "does not start here: pybind11" in capsys.readouterr().err


def test_layers_belong_to_their_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are replaced with it, hashed with it, and signed with it."""
    with monkeypatch.context() as patch:
        machine_with(patch, "tensorrt 11.4")
        bundle = built(tmp_path)
        again = build_bundle(bundle.root, bundle.root, BuildOptions(runtime="tensorrt", add=True), QUIET)
        machine_with(patch, "tensorrt 10.3")
        both = build_bundle(bundle.root, bundle.root, BuildOptions(runtime="tensorrt", add=True), QUIET)
    assert [len(opened.manifest.files()) for opened in (again, both)] == [3, 5]
    assert problems_of(both) == []
    first, second = both.manifest.engines
    assert not both.is_trusted(dataclasses.replace(first, inspected=second.inspected))
    assert first.inspected is not None
    (both.root / first.inspected.path).write_bytes(b"{}" + bytes(first.inspected.size - 2))
    assert "SHA-256" in problems_of(both)[0]


def test_the_layers_shown_are_of_the_engine_that_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        for which in ("tensorrt 10.3", "tensorrt 11.4"):
            machine_with(patch, which)
            bundle = built(tmp_path, add=which == "tensorrt 11.4")
            assert look_at(bundle.root)["layers_of"] == bundle.manifest.engines[-1].file.path
    monkeypatch.setattr(machine, "gpus", lambda: ())
    assert look_at(bundle.root)["layers_of"] == bundle.manifest.engines[0].file.path


def test_bundles_from_before_are_read_and_trusted(tmp_path: Path) -> None:
    """Schema 2 had no such field, and signed engines without it."""
    bundle = write_bundle(tmp_path / "b", manifest_of(), {"model.onnx": ONNX, "engine.plan": ENGINE})
    path = bundle.root / "manifest.json"
    manifest = json.loads(path.read_text("utf-8")) | {"schema": 2}
    for engine in manifest["engines"]:
        del engine["inspected"]
    path.write_text(json.dumps(manifest), "utf-8")
    old = open_bundle(bundle.root)
    assert old.manifest.engines == bundle.manifest.engines
    assert old.is_trusted(old.manifest.engines[0])


def test_the_signature_of_schema_2_has_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_key", lambda: bytes(32))
    assert own(engine_entry()).signature == "75600bad4a69f76f7183209f14d4530c2e0fae1b7e1ede08acd1f81b6a202ef3"


def test_layers_that_are_none_are_refused_in_one_line(tmp_path: Path) -> None:
    told = b'{"Layers": 7}'
    engine = own(engine_entry(b"ftrt", runtime="tensorrt", version="10.3.0", inspected=file_entry("l.json", told)))
    files = {"model.onnx": ONNX, "engine.plan": b"ftrt", "l.json": told}
    with pytest.raises(InputError, match=r"engine\.plan: not what TensorRT says.*; build it again") as caught:
        look_at(write_bundle(tmp_path / "b", manifest_of(engine), files).root)
    assert "\n" not in str(caught.value)


class TestAnEnginesOwnFile:
    """Is code, and loaded only where its maker is trusted."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "engine.plan"
        path.write_bytes(b"ftrt" + bytes(60))
        return path

    @pytest.mark.parametrize("which", AUTOTUNING)
    def test_with_trust(self, file: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
        machine_with(monkeypatch, which)
        facts = look_at(file, trust=True)
        assert (len(facts["layers"]), facts["loaded"]) == (5, True)
        shown = CliRunner().invoke(app, ["inspect", str(file), "--trust"]).stdout
        assert "from TensorRT, which loaded it" in " ".join(shown.split())

    def test_without(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        log = machine_with(monkeypatch, "tensorrt 11.4")
        facts = look_at(file)
        assert (facts["layers"], facts["loaded"], log) == ([], False, [])

    def test_without_tensorrt(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        done = CliRunner().invoke(app, ["inspect", str(file), "--trust"])
        assert (done.exit_code, "tensorrt cannot be loaded here" in done.stderr) == (3, True)

    def test_refused_by_it(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        machine_with(monkeypatch, "tensorrt 11.4")
        monkeypatch.setattr(Runtime, "deserialize_cuda_engine", lambda *_: None)
        with pytest.raises(InputError, match=r"TensorRT 11\.4\.0\.106 cannot load the engine: it gave no reason"):
            look_at(file, trust=True)
