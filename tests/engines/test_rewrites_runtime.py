"""Rewritten networks on ONNX Runtime: tuned at load, finished if tail-less, left alone if exported plain."""

import functools
from pathlib import Path

import numpy as np
import onnx
import pytest

from support.networks import exported, random_network
from support.runtime_tester import AS_SCANNED, tiles
from unetsharp_engines.errors import InputError
from unetsharp_engines.model_info import METADATA_KEY, ModelInfo
from unetsharp_engines.rewrites import PORTABLE, TAIL_KEY, rewrite, tuned
from unetsharp_engines.runtimes.onnxruntime import OnnxRuntime

INFO = ModelInfo(name="tiny", encoder="test_resnet", width=4, train_size=64)
TAILLESS = tuple("tailless-head-56" if name == "head-low-resolution" else name for name in PORTABLE)


@functools.cache
def plain() -> onnx.ModelProto:
    model = exported(random_network("test_resnet", 4), 64, 64)
    onnx.helper.set_model_props(model, {METADATA_KEY: INFO.to_json()})
    return model


def rewritten(names: tuple[str, ...] = PORTABLE) -> bytes:
    return rewrite(plain(), names)[0].SerializeToString()


def operations(content: bytes) -> set[str]:
    return {node.op_type for node in onnx.load_model_from_string(content).graph.node}


@pytest.mark.parametrize("names", [PORTABLE, TAILLESS], ids=["whole", "tail-less"])
@pytest.mark.parametrize("tuned", [True, False], ids=["tuned", "as it is"])
def test_rewritten_networks_say_what_the_plain_one_says(names: tuple[str, ...], tuned: bool) -> None:
    batch = tiles(3)
    expected = OnnxRuntime(plain().SerializeToString(), threads=1).logits(batch, AS_SCANNED)
    with OnnxRuntime(rewritten(names), threads=1, tuned=tuned) as runtime:
        np.testing.assert_allclose(runtime.logits(batch, AS_SCANNED), expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(runtime.logits(batch[:1], AS_SCANNED), expected[:1], rtol=0, atol=1e-5)
        with pytest.raises(InputError, match="exported for 64 by 64"):
            runtime.logits(tiles(1, 96, 64), AS_SCANNED)


def test_tuning_is_for_networks_exported_with_rewrites(tmp_path: Path) -> None:
    assert tuned("onnxruntime", plain()) is plain()
    assert "Softplus" in operations(rewritten())
    model = onnx.load_model_from_string(rewritten())
    assert "Softplus" not in operations(tuned("onnxruntime", model).SerializeToString())
    assert "Softplus" in operations(tuned("tensorrt", model).SerializeToString())


@pytest.mark.parametrize("content", [b"", b"no ONNX at all", b"\x08\x07\x12"], ids=["empty", "text", "cut off"])
def test_what_is_no_onnx_is_refused_by_the_runtime(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "broken.onnx"
    file.write_bytes(content)
    for given in (content, file):
        with pytest.raises(InputError):
            OnnxRuntime(given)
    with pytest.raises(InputError, match="no such file"):
        OnnxRuntime(tmp_path / "absent.onnx")


def test_tail_that_does_not_fit_its_network_is_refused() -> None:
    model = onnx.load_model_from_string(rewritten(TAILLESS))
    properties = {p.key: p.value for p in model.metadata_props}
    properties[TAIL_KEY] = properties[TAIL_KEY].replace("56", "54")
    onnx.helper.set_model_props(model, properties)
    with pytest.raises(InputError, match=r"its tensors are .*'head_taps'.*wanted .* head_taps \[N, 54, H, W\]"):
        OnnxRuntime(model.SerializeToString())
