"""From a float ONNX to INT8: what is chosen, what is repaired, what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.painted_folds import PAINTER_INFO
from support.painter_network import painted_folder, painter
from support.pannuke_folds import fold_arrays, released
from unetsharp.build.source import read_source
from unetsharp.cli.output import Output, Verbosity
from unetsharp.quantize.drift import Budget, Drift, HeldOut
from unetsharp.quantize.quantizer import QUANTIZATION_KEY, QuantizeSettings, quantize_source
from unetsharp.quantize.repair import LayerCost, Trials, cheapest_first, fewest
from unetsharp.quantize.selection import candidates, select, split_folds
from unetsharp.quantize.state import forget
from unetsharp_engines.errors import GateFailedError, InputError
from unetsharp_engines.model_info import METADATA_KEY
from unetsharp_trainer.data.pannuke import open_folds

PROGRAM = str(Path(sys.executable).with_name("unetsharp"))
QUIET = Output(verbosity=Verbosity.QUIET)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folds of four patches, painted with squares of every class."""
    return painted_folder(tmp_path_factory.mktemp("pannuke"))


SETTINGS = QuantizeSettings(images=3)
FOR_CPU = QuantizeSettings(images=3, runtime="onnxruntime")


def test_an_easy_network_is_quantized_whole(tmp_path: Path, folder: Path):
    result = quantize_source(read_source(painter(tmp_path / "m.onnx", hard=False)), folder, SETTINGS, QUIET)
    assert result.drift.float_dice == 1.0
    assert result.drift.int8_dice == 1.0
    assert [layer["precision"] for layer in result.report["layers"]] == ["int8", "int8"]
    assert list(result.report["trials"]) == ["0"]
    assert {layer["name"] for layer in result.report["float_by_rule"]} == {"first", "head"}


def test_a_hard_network_fails_plainly_and_passes_after_repair(tmp_path: Path, folder: Path):
    result = quantize_source(read_source(painter(tmp_path / "m.onnx", hard=True)), folder, SETTINGS, QUIET)
    plain = result.report["trials"]["0"]
    assert plain["dice_drop"] > 0.1
    assert result.drift.dice_drop <= 0.005
    assert result.drift.agreement >= 0.99
    precisions = {layer["name"]: layer["precision"] for layer in result.report["layers"]}
    assert precisions == {"spreading": "int8", "gathering": "float"}
    ratios = {layer["name"]: layer["sqnr_db"] for layer in result.report["layers"]}
    assert ratios["gathering"] < 10 < 30 < ratios["spreading"]


def test_the_onnx_says_how_it_was_made(tmp_path: Path, folder: Path):
    source = read_source(painter(tmp_path / "m.onnx", hard=True))
    result = quantize_source(source, folder, SETTINGS, QUIET)
    metadata = {p.key: p.value for p in onnx.ModelProto.FromString(result.content).metadata_props}
    assert metadata[METADATA_KEY] == PAINTER_INFO.to_json()
    made = json.loads(metadata[QUANTIZATION_KEY])
    assert made["float_layers"] == ["gathering"]
    assert made["images_sha256"] == result.report["calibration"]["images_sha256"]
    again = quantize_source(source, folder, SETTINGS, QUIET)
    assert again.content == result.content


def test_factors_moved_between_layers_make_a_hard_network_easy(tmp_path: Path, folder: Path):
    result = quantize_source(
        read_source(painter(tmp_path / "m.onnx", hard=True, locked=False)), folder, SETTINGS, QUIET
    )
    assert [layer["precision"] for layer in result.report["layers"]] == ["int8", "int8"]
    assert result.report["equalized"] == {"spreading": 20}
    assert result.drift.agreement >= 0.99


def test_for_the_cpu_it_is_placed_otherwise_and_judged_the_same(tmp_path: Path, folder: Path):
    source = read_source(painter(tmp_path / "m.onnx", hard=True, locked=False))
    result = quantize_source(source, folder, FOR_CPU, QUIET)
    model = onnx.ModelProto.FromString(result.content)
    assert json.loads({p.key: p.value for p in model.metadata_props}[QUANTIZATION_KEY])["runtime"] == "onnxruntime"
    assert onnx.TensorProto.UINT8 in {t.data_type for t in model.graph.initializer}
    assert result.drift.agreement >= 0.99
    assert result.report["drift"]["dice_drop"] <= 0.005


def test_where_no_layer_could_stay_in_int8_it_is_refused(tmp_path: Path, folder: Path):
    """On the CPU both layers' tensors would be rounded where channels lie far apart."""
    with pytest.raises(GateFailedError, match="--fp16"):
        quantize_source(read_source(painter(tmp_path / "m.onnx", hard=True)), folder, FOR_CPU, QUIET)


def test_what_stays_float_is_told_by_reason(tmp_path: Path, folder: Path):
    report = quantize_source(read_source(painter(tmp_path / "m.onnx", hard=True)), folder, SETTINGS, QUIET).report
    shares = report["float_share_of_macs"]
    assert set(shares) == {"reads the image", "makes the logits", "repair"}
    assert sum(shares.values()) + report["int8_share_of_macs"] == pytest.approx(1.0)


def test_calibration_and_judgement_are_on_different_patches_and_the_last_fold_stays_unseen(
    tmp_path: Path, folder: Path
):
    result = quantize_source(read_source(painter(tmp_path / "m.onnx", hard=False)), folder, SETTINGS, QUIET)
    chosen = {name: {fold for fold, _ in result.report[name]["patches"]} for name in ("calibration", "judged_by")}
    assert chosen == {"calibration": {1}, "judged_by": {2}}


def test_where_repair_would_leave_int8_in_name_only_it_is_refused(tmp_path: Path, folder: Path):
    source = read_source(painter(tmp_path / "m.onnx", hard=True, kernel=3))  # the hard one is most of the network
    with pytest.raises(GateFailedError, match=r"--fp16"):
        quantize_source(source, folder, SETTINGS, QUIET)


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([PROGRAM, "quantize", *arguments], capture_output=True, text=True, check=False)


def test_the_command(tmp_path: Path, folder: Path):
    model, out = painter(tmp_path / "m.onnx", hard=True), tmp_path / "int8.onnx"
    done = run(str(model), "-o", str(out), "--calibration", str(folder), "--images", "3", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["onnx"] == str(out)
    written = json.loads((tmp_path / "int8.json").read_text())
    assert written["drift"] == told["drift"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["int8.json", "int8.onnx", "m.onnx"]


def test_a_result_that_cannot_be_written_is_not_lost(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    source, out = read_source(painter(tmp_path / "m.onnx", hard=True)), tmp_path / "int8.onnx"
    first = quantize_source(source, folder, SETTINGS, QUIET, state=out)  # and then the disk is full
    judge = HeldOut.drift
    monkeypatch.setattr(HeldOut, "drift", None)  # nothing is judged again
    assert quantize_source(source, folder, SETTINGS, QUIET, state=out).content == first.content
    monkeypatch.setattr("unetsharp.quantize.quantizer.code_sha256", lambda: "of a program that was mended")
    judged: list[int] = []
    monkeypatch.setattr(HeldOut, "drift", lambda *given: judged.append(1) or judge(*given))
    assert quantize_source(source, folder, SETTINGS, QUIET, state=out).content == first.content
    assert judged
    forget(out)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_the_command_refuses_and_writes_nothing(tmp_path: Path, folder: Path):
    model, out = painter(tmp_path / "m.onnx", hard=True, kernel=3), tmp_path / "int8.onnx"
    done = run(str(model), "-o", str(out), "--calibration", str(folder), "--images", "3")
    assert done.returncode == 1, done.stderr
    assert "foreground Dice" in done.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "best"}, "entropy"),
        ({"images": 0}, "--images"),
        ({"runtime": "openvino"}, "--runtime"),
    ],
)
def test_settings_that_cannot_be(change: dict, message: str):
    with pytest.raises(InputError, match=message):
        QuantizeSettings(**change)


def test_budgets_that_mean_nothing():
    for wrong in ({"max_dice_drop": -0.1}, {"max_dice_drop": float("nan")}, {"min_agreement": 1.1}):
        with pytest.raises(InputError, match="wanted a share"):
            Budget(**wrong)


def test_weights_and_engines_are_no_onnx(tmp_path: Path):
    """Nor for `build-engine`, which reads its network the same way."""
    header = b'{"__metadata__":{}}'
    forms = {"weights": len(header).to_bytes(8, "little") + header, "engine": b"ftrt"}
    says = {"weights": "unetsharp export .*weights -o model.onnx", "engine": "give the bundle that it came from"}
    for name, content in forms.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}.*, and an ONNX is wanted.*{says[name]}"):
            read_source(tmp_path / name)


def test_an_int8_network_is_not_quantized_again(tmp_path: Path, folder: Path):
    source = read_source(painter(tmp_path / "m.onnx", hard=False))
    (tmp_path / "q.onnx").write_bytes(quantize_source(source, folder, SETTINGS, QUIET).content)
    with pytest.raises(InputError, match="int8 already"):
        quantize_source(read_source(tmp_path / "q.onnx"), folder, SETTINGS, QUIET)


def test_selection_shows_every_tissue_and_class_and_repeats_itself(tmp_path: Path):
    released(tmp_path, 1, fold_arrays(24, seed=3, mask_dtype="uint8", dtype="uint8"))
    fold, judged_by = split_folds(open_folds(tmp_path))
    assert judged_by is fold
    pool = candidates(fold)
    assert len(pool) == 24
    chosen = select(fold, pool, 4)
    assert len(chosen.patches) == 4
    counts = chosen.counts()
    assert set(counts["tissues"]) == set(fold.tissues)
    assert set(counts["classes"]) == {name for patch in pool for name in patch.classes}
    assert select(fold, reversed(pool), 4) == chosen
    assert select(fold, pool, 5).sha256 != chosen.sha256
    assert len(select(fold, pool, 99).patches) == 24
    with pytest.raises(InputError, match="no patch is left"):
        select(fold, [], 4)


def test_a_rare_class_is_chosen_first(tmp_path: Path):
    arrays = fold_arrays(12, dtype="uint8", mask_dtype="uint8")
    arrays["masks"][...] = 0
    arrays["masks"][:, :9, :9, 0] = 1
    arrays["masks"][7, 20:30, 20:30, 3] = 2
    arrays["types"][:] = "Breast"
    released(tmp_path, 1, arrays)
    fold = open_folds(tmp_path)[1]
    assert [patch.index for patch in select(fold, candidates(fold), 1).patches] == [7]


def drift(drop: float) -> Drift:
    return Drift(images=1, float_dice=0.8, int8_dice=0.8 * (1 - drop), agreement=1.0)


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_search_finds_the_fewest_in_few_trials(needed: int, most: int):
    tried: list[int] = []

    def holds(floats: int) -> bool:
        tried.append(floats)
        return floats >= needed

    assert fewest(holds, most) == (needed if needed <= most else None)
    assert max(tried) <= most
    assert len(set(tried)) <= 2 + 2 * max(1, most).bit_length()


def test_layers_go_back_by_noise_for_their_cost():
    def layer(name: str, noise: float, macs: float) -> LayerCost:
        return LayerCost(name=name, macs=macs, bytes=macs, noise_to_signal=noise)

    layers = [layer("quiet", 1e-4, 0.01), layer("dear", 1e-2, 0.2), layer("cheap", 1e-2, 0.01)]
    assert cheapest_first(layers) == ["cheap", "dear", "quiet"]
    assert layers[0].sqnr_db == pytest.approx(40.0)
    assert layer("silent", 0.0, 0.1).sqnr_db is None


def test_trials_are_measured_once_and_taken_up_again(tmp_path: Path):
    measured: list[int] = []

    def measure(floats: int) -> Drift:
        measured.append(floats)
        return drift(0.01 * floats)

    path = tmp_path / "trials.json"
    first = Trials(measure, path, "key")
    assert first(2) == first(2)
    assert Trials(measure, path, "key")(2) == first(2)
    assert measured == [2]
    Trials(measure, path, "another network")(2)
    assert measured == [2, 2]
    path.write_text("")  # as a computer that lost its power may leave it
    Trials(measure, path, "another network")(2)
    assert measured == [2, 2, 2]
