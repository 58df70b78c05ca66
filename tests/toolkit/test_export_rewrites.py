"""export --rewrite and --no-rewrite on the trained weights that ship: parity, account, the plain graph in reach."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from typer.testing import CliRunner

import unetsharp
from unetsharp.build.source import read_source
from unetsharp.cli.app import app
from unetsharp.export.comparison import compare, sample_tiles
from unetsharp.export.precision import to_fp16
from unetsharp.export.torch_runtime import TorchRuntime
from unetsharp_engines.contract import TAPS_NAME
from unetsharp_engines.model_info import METADATA_KEY
from unetsharp_engines.quantization.rounding import spelled_out
from unetsharp_engines.rewrites import (
    PORTABLE,
    REWRITES_KEY,
    TAIL_KEY,
    HeadTail,
    RewriteReport,
    finished,
    tuned,
)
from unetsharp_engines.runtimes.onnxruntime import OnnxRuntime

EDGE = Path(unetsharp.__file__).parent / "assets" / "edge.safetensors"


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """By option: the file and what the command printed as JSON."""
    made = {}
    for option in ("--rewrite", "--no-rewrite", "--tail-less"):
        path = tmp_path_factory.mktemp("exports") / "model.onnx"
        done = CliRunner().invoke(app, ["export", str(EDGE), "-o", str(path), option, "--size", "192", "--json"])
        assert done.exit_code == 0, done.output
        made[option] = path, json.loads(done.stdout)
    return made


def metadata(path: Path) -> dict[str, str]:
    return {p.key: p.value for p in onnx.load(path).metadata_props}


@pytest.mark.parametrize("option", ["--rewrite", "--tail-less"])
@pytest.mark.parametrize("tuned", [True, False], ids=["tuned for ONNX Runtime", "as written"])
def test_trained_network_agrees_with_pytorch(exports, tuned: bool, option: str) -> None:
    path, _ = exports[option]
    with TorchRuntime(EDGE, device="cpu") as reference, OnnxRuntime(path, threads=1, tuned=tuned) as candidate:
        seen = compare(reference, candidate, sample_tiles(192))
    assert seen.max_difference <= 1e-4
    assert seen.largest_logit > 1


def test_account_is_in_the_file_and_in_the_report(exports) -> None:
    path, printed = exports["--rewrite"]
    kept = RewriteReport.from_json(metadata(path)[REWRITES_KEY])
    assert [done.name for done in kept.passes] == list(PORTABLE)
    assert kept.after.bytes < kept.before.bytes
    assert (kept.max_height, kept.max_width) == (192, 192)  # at 192 even d = 6 only touches its centre
    assert printed["rewrites"]["after"]["bytes"] == kept.after.bytes
    assert METADATA_KEY in metadata(path)
    assert not [key for key in metadata(path) if "onnxsim" in key]


def test_tail_less_export_says_how_to_finish_it(exports, tmp_path: Path) -> None:
    path, printed = exports["--tail-less"]
    assert printed["settings"]["tail_less"] is True
    assert metadata(path)["output"].startswith("nine taps")
    assert HeadTail.from_json(metadata(path)[TAIL_KEY], source="it") == HeadTail(classes=6, factor=2, channels=56)
    (output,) = onnx.load(path).graph.output
    assert (output.name, [d.dim_value for d in output.type.tensor_type.shape.dim][1:]) == (TAPS_NAME, [56, 96, 96])
    source = read_source(path)
    assert source.input_shape == (None, 3, 192, 192)


def test_tail_less_is_a_rewrite(tmp_path: Path) -> None:
    options = ["export", str(EDGE), "-o", str(tmp_path / "m.onnx"), "--no-rewrite", "--tail-less"]
    done = CliRunner().invoke(app, options)
    assert (done.exit_code, "leave --no-rewrite out" in done.stderr) == (2, True)


def test_plain_export_is_as_traced_and_stays_so(exports) -> None:
    path, printed = exports["--no-rewrite"]
    assert printed["rewrites"] is None
    assert REWRITES_KEY not in metadata(path)
    operations = [node.op_type for node in onnx.load(path).graph.node]
    assert (operations.count("Resize"), operations.count("BatchNormalization"), "MatMul" in operations) == (
        11,
        30,
        False,
    )


def test_rewrites_for_tensorrt_rtx_drift_no_further_in_float16(exports) -> None:
    """Every float16 rounding computed: what an engine is built from strays from float32 as plain FP16 does."""
    model = onnx.load(exports["--rewrite"][0])
    x = sample_tiles(192).transpose(0, 3, 1, 2).astype(np.float32) / 255
    wanted, plain, seen = (
        onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"image": x})[0]
        for m in (
            model,
            spelled_out(to_fp16(model)),
            spelled_out(finished("tensorrt-rtx", to_fp16(tuned("tensorrt-rtx", model)))),
        )
    )
    assert np.abs(plain - wanted).mean() > 1e-4, "the roundings are there"
    assert np.abs(seen - wanted).mean() <= 1.2 * np.abs(plain - wanted).mean()
    assert (seen.argmax(axis=1) == wanted.argmax(axis=1)).mean() > 0.9995
