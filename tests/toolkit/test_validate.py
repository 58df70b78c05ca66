"""``unetsharp validate`` as a person runs it: verdicts, exit codes, report."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from support.painter_network import painted_folder, painter
from support.pannuke_folds import real_fold, released
from unetsharp import machine
from unetsharp.build.pipeline import BuildOptions, build_bundle
from unetsharp.build.source import read_source
from unetsharp.cli.output import Output, Verbosity
from unetsharp.quantize.quantizer import QuantizeSettings, quantize_source
from unetsharp.validate.assessment import Verdict
from unetsharp.validate.page import TERMS
from unetsharp.validate.record import record_of
from unetsharp.validate.validation import ValidateSettings, validate_bundle
from unetsharp_engines.errors import InputError, MissingCapabilityError
from unetsharp_engines.quantization import place, quantize
from unetsharp_engines.rewrites.graph import Graph
from unetsharp_engines.runtimes.base import Runtime
from unetsharp_engines.runtimes.onnxruntime import OnnxRuntime
from unetsharp_trainer.data.pannuke import open_folds

PROGRAM = str(Path(sys.executable).with_name("unetsharp"))
QUIET = Output(verbosity=Verbosity.QUIET)


@pytest.fixture(scope="module")
def place_(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PanNuke folds, an easy and a hard network in float, and bundles of their INT8."""
    root = tmp_path_factory.mktemp("validate")
    painted_folder(root / "PanNuke")
    for name, hard in (("easy", False), ("hard", True)):
        painter(root / f"{name}.onnx", hard=hard)
    easy = quantize_source(read_source(root / "easy.onnx"), root / "PanNuke", QuantizeSettings(images=3), QUIET)
    (root / "easy-int8.onnx").write_bytes(easy.content)
    _plainly_quantized(root / "hard.onnx", root / "hard-int8.onnx")
    for name in ("easy", "easy-int8", "hard-int8"):
        build_bundle(root / f"{name}.onnx", root / f"{name}-bundle", BuildOptions(runtime="onnxruntime"), QUIET)
    return root


def _plainly_quantized(source: Path, out: Path) -> None:
    """INT8 without repair, one scale for channels that lie 10⁶ apart."""
    model = onnx.load(source)
    placement = place(Graph(model))
    onnx.save(quantize(model, placement, dict.fromkeys(placement.tensors, 1e3)), out)


def run(root: Path, bundle: str, *more: str, reference: str = "easy.onnx") -> "subprocess.CompletedProcess[str]":
    command = [PROGRAM, "validate", bundle, "--reference", reference, "--data", "PanNuke", *more]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def strict(text: str) -> dict[str, Any]:
    """JSON as its standard has it: without NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return dict(json.loads(text, parse_constant=refuse))


def test_a_faithful_bundle_passes(place_: Path) -> None:
    done = run(place_, "easy-int8-bundle", "--report", "passed", "--json")
    assert done.returncode == 0, done.stderr
    told = strict(done.stdout)
    assert told["verdict"] == "passed"
    assert [step["key"] for step in told["steps"]] == ["reference", "onnxruntime"]
    assert told["quantization"]["calibration_folds"] == [1]
    assert told["data"]["fold"] == 3
    assert any("fold 3 is neither" in caveat for caveat in told["caveats"])
    assert sorted(path.name for path in (place_ / "passed").iterdir()) == ["report.html", "report.json"]
    written = strict((place_ / "passed" / "report.json").read_text(encoding="utf-8"))
    assert written == {key: value for key, value in told.items() if key != "files"}


def test_a_bundle_that_lost_a_class_fails_by_the_gates_name(place_: Path) -> None:
    done = run(place_, "hard-int8-bundle", "--report", "failed", reference="hard.onnx")
    assert done.returncode == 1, done.stderr
    assert "gate failed" in done.stderr
    assert "Dice" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Failed:" in done.stdout
    failed = strict((place_ / "failed" / "report.json").read_text(encoding="utf-8"))
    assert {"foreground Dice", "class-mean Dice"} <= {g["gate"] for g in failed["gates"] if not g["passed"]}
    assert len(failed["worst_patches"]) == 4


def test_limits_may_be_set(place_: Path) -> None:
    loose = ("--max-dice-drop", "0.999", "--min-agreement", "0", "--report", "loose")
    assert run(place_, "hard-int8-bundle", *loose, reference="hard.onnx").returncode == 0
    assert run(place_, "easy-bundle", "--min-agreement", "2").returncode == 2


def test_an_engine_without_a_gpu_is_not_run_and_not_validated(place_: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'unetsharp[rtx]'")
    options = BuildOptions(runtime="tensorrt-rtx", targets=("sm75",), batch=(1, 1, 1), precision="fp16")
    build_bundle(place_ / "easy.onnx", place_ / "rtx-bundle", options, QUIET)
    done = run(place_, "rtx-bundle", "--report", "incomplete", "--json")
    assert done.returncode == 3, done.stderr
    told = strict(done.stdout)
    assert told["verdict"] == "incomplete"
    states = {step["key"]: step["state"] for step in told["steps"]}
    assert states == {"reference": "ran", "exported": "ran", "typed": "ran", "tensorrt-rtx": "NOT RUN"}
    assert told["steps"][-1]["reason"]
    assert "NOT RUN" in (place_ / "incomplete" / "report.html").read_text(encoding="utf-8")
    by_name = run(place_, "rtx-bundle", "--runtime", "onnxruntime", "--report", "cpu", "--json")
    assert by_name.returncode == 0, by_name.stderr
    assert any("also holds an engine" in caveat for caveat in strict(by_name.stdout)["caveats"])


def test_an_engine_that_runs_is_the_last_step(place_: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'unetsharp[rtx]'")
    options = BuildOptions(runtime="tensorrt-rtx", targets=("sm75",), batch=(1, 1, 1), precision="fp32")
    build_bundle(place_ / "easy.onnx", tmp_path / "bundle", options, QUIET)
    fold = open_folds(place_ / "PanNuke")[3]
    asked = []

    def on_a_gpu(root: Path, name: str, *, trust: bool) -> Runtime:
        asked.append((root, name, trust))
        return OnnxRuntime(place_ / "easy.onnx")

    monkeypatch.setattr("unetsharp.validate.chain.open_runtime", on_a_gpu)
    settings = ValidateSettings(trust=True, images=2)
    seen = validate_bundle(tmp_path / "bundle", place_ / "easy.onnx", fold, settings, QUIET)
    assert asked == [(tmp_path / "bundle", "tensorrt-rtx", True)]
    assert [r.ran.step.key for r in seen.assessment.steps] == ["reference", "exported", "tensorrt-rtx"]
    assert seen.assessment.verdict is Verdict.PASSED

    def refused(root: Path, name: str, *, trust: bool) -> Runtime:
        raise InputError("no engine in it fits this machine")

    monkeypatch.setattr("unetsharp.validate.chain.open_runtime", refused)
    seen = validate_bundle(tmp_path / "bundle", place_ / "easy.onnx", fold, settings, QUIET)
    assert [n.reason for n in seen.assessment.not_run] == ["no engine in it fits this machine"]
    assert seen.assessment.verdict is Verdict.INCOMPLETE


@pytest.mark.parametrize(
    ("gpus", "error", "says"), [(0, MissingCapabilityError, "NVIDIA GPU"), (1, InputError, "no runtime")]
)
def test_a_runtime_that_the_bundle_has_no_engine_for(
    place_: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, error: type[Exception], says: str
) -> None:
    here = machine.Gpu(name="a GPU", target="sm86", memory_bytes=1 << 30)
    monkeypatch.setattr(machine, "gpus", lambda: (here,) * gpus)
    fold = open_folds(place_ / "PanNuke")[3]
    with pytest.raises(error, match=says):
        validate_bundle(place_ / "easy-bundle", place_ / "easy.onnx", fold, ValidateSettings(runtime="tensorrt"), QUIET)


def test_a_damaged_bundle_is_refused_before_anything_runs(place_: Path, tmp_path: Path) -> None:
    shutil.copytree(place_ / "easy-bundle", tmp_path / "bundle")
    content = bytearray((tmp_path / "bundle" / "model.onnx").read_bytes())
    content[-1] ^= 1
    (tmp_path / "bundle" / "model.onnx").write_bytes(content)
    fold = open_folds(place_ / "PanNuke")[3]
    with pytest.raises(InputError, match="SHA-256"):
        validate_bundle(tmp_path / "bundle", place_ / "easy.onnx", fold, ValidateSettings(), QUIET)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("easy-bundle", "--fold", "7"), "no fold 7"),
        (("easy-bundle", "--runtime", "trt"), "--runtime trt: wanted one of auto, tensorrt, "),
        (("easy-bundle", "--images", "0"), "--images"),
        (("easy.onnx",), "easy.onnx: an ONNX, no bundle; make one: unetsharp build-engine easy.onnx -o bundle"),
        (("easy-bundle", "--reference", "easy-bundle"), "--reference easy-bundle: a bundle; give the weights"),
        (("easy-bundle", "--report", "easy.onnx"), "--report"),
    ],
)
def test_mistakes_are_told_in_one_line(place_: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run(place_, *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error:")
    assert "Traceback" not in done.stderr


def test_a_reference_of_another_network_is_refused(place_: Path, tmp_path: Path) -> None:
    other = onnx.load(place_ / "easy.onnx")
    for entry in other.metadata_props:
        if entry.key == "unetsharp":
            entry.value = entry.value.replace('"weights_sha256": ""', f'"weights_sha256": "{"ab" * 32}"')
    onnx.save(other, tmp_path / "other.onnx")
    fold = open_folds(place_ / "PanNuke")[3]
    with pytest.raises(InputError, match="abababababab"):
        validate_bundle(place_ / "easy-bundle", tmp_path / "other.onnx", fold, ValidateSettings(), QUIET)
    with pytest.raises(InputError, match="is int8"):
        validate_bundle(place_ / "easy-bundle", place_ / "easy-int8.onnx", fold, ValidateSettings(), QUIET)


def test_a_fold_that_set_the_scales_is_no_evidence(place_: Path) -> None:
    folds = open_folds(place_ / "PanNuke")
    one = ValidateSettings(images=1)
    seen = validate_bundle(place_ / "easy-int8-bundle", place_ / "easy.onnx", folds[1], one, QUIET)
    assert any("no independent evidence" in caveat for caveat in record_of(seen, {})["caveats"])
    assert seen.assessment.gates[0].kept.low is None


def test_data_without_nuclei_is_refused(place_: Path, tmp_path: Path) -> None:
    arrays = real_fold()
    arrays["masks"][...] = 0
    arrays["images"][...] = 236
    released(tmp_path, 3, arrays)
    with pytest.raises(InputError, match="means nothing"):
        fold = open_folds(tmp_path)[3]
        validate_bundle(place_ / "easy-bundle", place_ / "easy.onnx", fold, ValidateSettings(images=2), QUIET)


def test_a_run_that_ends_early_leaves_no_report(place_: Path, tmp_path: Path) -> None:
    arrays = {name: array[:4].copy() for name, array in real_fold().items()}
    arrays["masks"] = arrays["masks"].astype(np.float32)
    arrays["masks"][3, 0, 0, 0] = 0.5
    released(tmp_path / "PanNuke", 3, arrays)
    done = subprocess.run(
        [
            PROGRAM,
            "validate",
            str(place_ / "easy-bundle"),
            "--reference",
            str(place_ / "easy.onnx"),
            "--data",
            "PanNuke",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "whole numbers" in done.stderr
    assert [path.name for path in (tmp_path / "drift-report").iterdir()] == [".unfinished"]


@pytest.mark.parametrize(("bundle", "tail_less"), [("bundle", False), ("bundle.zip", True)])
def test_weights_are_followed_through_every_step(tmp_path: Path, bundle: str, tail_less: bool) -> None:
    pytest.importorskip("torch", reason="the reference is run by PyTorch")
    from support.networks import random_network
    from unetsharp.export.exporter import ExportSettings, export_onnx
    from unetsharp_engines.model_info import ModelInfo
    from unetsharp_trainer.network import save_weights

    weights = tmp_path / "w.safetensors"
    info = ModelInfo(name="random", encoder="test_efficientnet", width=4, train_size=64, stain="none")
    save_weights(weights, random_network("test_efficientnet", 4), info)
    released(tmp_path / "PanNuke", 3, real_fold())
    export_onnx(weights, tmp_path / "m.onnx", ExportSettings(size=192, tail_less=tail_less), QUIET)
    build_bundle(tmp_path / "m.onnx", tmp_path / bundle, BuildOptions(runtime="onnxruntime"), QUIET)
    fold = open_folds(tmp_path / "PanNuke")[3]
    seen = validate_bundle(tmp_path / bundle, weights, fold, ValidateSettings(images=3), QUIET)
    assert [r.ran.step.key for r in seen.assessment.steps] == ["reference", "exported", "rewritten", "onnxruntime"]
    assert seen.assessment.verdict is Verdict.PASSED
    for result in seen.assessment.steps[1:]:
        assert result.against_reference is not None
        assert result.against_reference.pair["logit_snr"].value > 80
    assert seen.chain.sides == (192, 192)


class _Page(HTMLParser):
    """What a browser would fetch or run, and the words that it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_needs_nothing_else_and_explains_itself(place_: Path) -> None:
    if not (place_ / "failed" / "report.html").is_file():
        run(place_, "hard-int8-bundle", "--report", "failed", reference="hard.onnx")
    text = (place_ / "failed" / "report.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert page.fetched, "pictures are in it"
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.fetched)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"url\(|@import|https?://", text)
    assert not re.search(r"\$[a-z]", text), "no placeholder is left"
    shown = " ".join(page.words)
    assert "Failed" in shown
    for term, meaning in TERMS:
        assert term in shown
        assert meaning.split("'")[0] in shown
    assert page.tags.count("svg") == 3
    assert page.tags.count("figure") == 4


KEYS = {
    "": {
        "schema", "verdict", "headline", "summary", "gates", "not_gated", "steps", "layers", "worst_patches", "caveats",
        "data", "quantization", "network", "interval", "quantities", "made",
    },
    "gates": {"step", "gate", "passed", "value", "unit", "interval", "limit", "certainty"},
    "steps": {
        "key", "title", "precision", "origin", "sha256", "size", "state", "reason", "runtime", "device", "latency",
        "measures", "against_reference", "against_previous",
    },
    "layers": {"name", "precision", "sqnr"},
    "worst_patches": {"fold", "patch", "tissue", "changed", "of"},
    "data": {"fold", "patches", "indices", "sha256", "tissues", "nuclei"},
    "made": {
        "command", "arguments", "started", "finished", "unetsharp", "python", "packages", "platform", "cores", "files",
    },
}  # fmt: skip


def test_the_json_keeps_its_names(place_: Path) -> None:
    if not (place_ / "failed" / "report.json").is_file():
        run(place_, "hard-int8-bundle", "--report", "failed", reference="hard.onnx")
    record = strict((place_ / "failed" / "report.json").read_text(encoding="utf-8"))
    assert record["schema"] == 1
    for part, keys in KEYS.items():
        seen = record[part] if part else record
        assert set(seen[0] if isinstance(seen, list) else seen) == keys, part
    last = record["steps"][-1]
    assert set(last["measures"]) | set(last["against_reference"]["pair"]) == set(record["quantities"])
    for measure in (*last["measures"].values(), *last["against_reference"]["differences"].values()):
        assert {"value", "unit", "interval"} <= set(measure)
        assert measure["unit"]
