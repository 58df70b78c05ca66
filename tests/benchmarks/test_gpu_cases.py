"""What the scripts for a GPU measure, on a GPU made of numpy; the bars read what they write."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

import end_to_end
import rewrites_tensorrt
import turns
from bars import BARS, Verdict, verdict_on
from gpu_engine import Engines
from stepwise import Found, Outcome
from support.fake_cuda import Gpu
from support.fake_tensorrt import install, logits_of, network
from support.strict_tensorrt import VERSIONS

SIDE = 64
DONE = Outcome(state="done", exit_code=0)
QUICK = (
    (turns, "_TURN_S", 1e-3), (turns, "_PAUSE_S", 0.0), (turns, "_GRACE_S", 0.0), (rewrites_tensorrt, "TURNS", 2),
    (rewrites_tensorrt, "BATCHES", (1, 16)), (rewrites_tensorrt, "LAYERS_AT", 2), (end_to_end, "BATCHES", (1, 16)),
    (end_to_end, "TILES", 20), (end_to_end, "MANY", 41), (end_to_end, "CALLS_AT_ONE", 3), (end_to_end, "WARM", 1),
    (end_to_end, "TURNS", 2),
)  # fmt: skip


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with engines and pictures as the steps before leave them, and little to measure."""
    image = np.rint(255 * np.random.default_rng(0).random((16, 3, SIDE, SIDE))).astype(np.float32) / np.float32(255)
    logits = logits_of(network(image[:2], tailless=True), tailless=True)
    np.savez(tmp_path / "reference.npz", image=image, logits=logits)
    (tmp_path / "plain.plan").write_bytes(b"logits half shared")
    (tmp_path / "tail-less.plan").write_bytes(b"taps half shared")
    for module, name, value in QUICK:
        monkeypatch.setattr(module, name, value)
    return tmp_path


def verdicts(work: Path, *steps: str) -> dict[str, Verdict]:
    """By the bar's first step, of the bars that ``steps`` show."""
    found = Found(work, dict.fromkeys(steps, DONE))
    return {bar.name: verdict_on(bar, found) for bar in BARS if set(bar.steps) & set(steps)}


@pytest.mark.parametrize("version", [version for version in VERSIONS if "rtx" not in version])
def test_engines_are_timed_and_compared(work: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    gpu = install(Gpu(), monkeypatch, most=16, tensorrt_version=version)
    rewrites_tensorrt.time_engines(
        argparse.Namespace(work=work, round="first", names=["plain", "tail-less", "portable"])
    )
    written = json.loads((work / "engines-first.json").read_text())
    assert [(row["form"], row["batch"], row["ms_median"]) for row in written["timings"]] == [
        ("plain", 1, 20.0), ("plain", 16, 20.0), ("tail-less", 1, 20.0), ("tail-less", 16, 20.0),
    ]  # fmt: skip
    assert written["accuracy"]["tail-less"]["agreement"] > 0.999
    assert written["accuracy"]["tail-less"]["max_difference"] < 1e-2 * written["accuracy"]["tail-less"]["largest_logit"]
    assert gpu.used == 0 and gpu.contexts == 0, "all is freed"


def test_an_engine_that_is_refused_stops_no_other(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = install(Gpu(), monkeypatch, most=16)
    (work / "portable.plan").write_bytes(b"for another GPU")
    with Engines([work / "portable.plan", work / "tail-less.plan"]) as engines:
        assert list(engines.loaded) == ["tail-less"]
        runner = engines.runner("tail-less", np.zeros((16, 3, SIDE, SIDE), np.float32))
        gpu.launches.clear()
        runner.run(3)
        assert gpu.launches == ["graph", "network", "finish"] * 3, "the kernel that makes labels is in its time"


def test_an_engine_that_does_not_fit_stops_no_other(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(Gpu(total=3_000_000), monkeypatch, most=16)  # 16 tiles' pictures and taps are 2.3 MB, logits 0.8
    rewrites_tensorrt.time_engines(argparse.Namespace(work=work, round="all", names=["tail-less", "plain"]))
    rows = json.loads((work / "engines-all.json").read_text())["timings"]
    assert [(row["form"], row["batch"]) for row in rows] == [("tail-less", 1), ("tail-less", 16), ("plain", 1)]
    told = capsys.readouterr().out
    assert "plain, batch 16: cuMemAlloc failed" in told and "measured without torch-all" in told
    written = json.loads((work / "engines-all.json").read_text())
    assert written["alone"] and written["left_out"]["plain"].startswith("batch 16: cuMemAlloc failed")


def test_end_to_end(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    gpu = install(Gpu(), monkeypatch, most=16)
    for case in end_to_end.ENGINE_CASES:
        monkeypatch.setattr("sys.argv", ["end_to_end.py", case, str(work)])
        end_to_end.main()
        assert gpu.used == 0, "all is freed"
    assert "measured without race-torch" in capsys.readouterr().out
    written = {case: json.loads((work / f"{case}.json").read_text()) for case in end_to_end.ENGINE_CASES}
    assert written["stages"]["agreement"] == 1.0
    assert written["race-engine"]["alone"]
    assert {slots: row["batch"] for slots, row in written["overlap"].items()} == {
        "2 slots": 16, "1 slots": 16, "3 slots": 16,
    }  # fmt: skip
    seen = verdicts(work, *end_to_end.ENGINE_CASES)
    assert seen["end to end gives PyTorch's float32 label"][2:4] == ("100.000%", "MET")
    assert seen["100,000 tiles in a row"].verdict == "MET"
    assert seen["100,000 tiles in a row"].measured.startswith("60 tiles, identical labels, memory gpu +0.0 MiB")
    assert seen["graphs at one tile"].verdict in ("MET", "MISSED")
    assert seen["end to end over the engine alone"].verdict in ("MET", "MISSED")
    assert seen["end to end over PyTorch's best"].verdict == "NOT RUN", "one side alone is no race"


def test_the_race_takes_the_batch_that_was_fastest(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for batch, rate in ((64, 900.0), (128, 1000.0)):
        end_to_end.result_file(work, f"chain-{batch}").write_text(json.dumps({"tiles_per_s": rate}))
    taken: list[int] = []

    class StoppedError(Exception):
        pass

    def chain(batch: int, *_: object) -> object:
        taken.append(batch)
        raise StoppedError

    monkeypatch.setattr(end_to_end, "chain", chain)
    with pytest.raises(StoppedError):
        end_to_end.race_torch(np.zeros((1, SIDE, SIDE, 3), np.uint8), work)
    assert taken == [128]


def test_what_was_not_compiled_before_keeps_no_engine_waiting(tmp_path: Path) -> None:
    modes = ("eager", "max-autotune")
    every = [(mode, batch) for mode in modes for batch in (64, 16, 1)]
    assert rewrites_tensorrt.torch_forms(tmp_path, "prepare", modes) == every
    rewrites_tensorrt.compiled(tmp_path, "max-autotune", 64).touch()
    assert rewrites_tensorrt.torch_forms(tmp_path, "all", modes) == every[:4]


def test_layers_are_summed_by_kind() -> None:
    table = rewrites_tensorrt.layer_table(
        [
            {"Name": "a", "LayerType": "CaskConvolution", "ms": 2.0},
            {"Name": "b", "LayerType": "Reformat", "ms": 0.5},
            {"Name": "c", "LayerType": "CaskConvolution", "ms": 1.0},
            {"Name": "d", "ms": None},
        ]
    )
    assert table["by_kind"] == {
        "CaskConvolution": {"layers": 2, "ms": 3.0},
        "Reformat": {"layers": 1, "ms": 0.5},
        "not told": {"layers": 1, "ms": 0.0},
    }
    assert [layer["name"] for layer in table["slowest"]] == ["a", "c", "b", "d"]
