"""Bars, held to results in the form that the scripts write."""

import json
import operator
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import bars
import int8_placements
import rewrites_tensorrt
import turns
from bars import BARS, Verdict, verdict_on
from stepwise import Found, Outcome
from unetsharp_engines.cuda.deep import DEEP_KERNELS

DONE = Outcome(state="done", exit_code=0, seconds=12.0)
KERNELS = Path(bars.__file__).with_name("results") / "cuda_kernels.json"
"""What `cuda_kernels.py` wrote on an H100."""
FAST, COMPILED = "rewritten over plain engine", "rewritten engine over torch.compile"
INT8 = "INT8 over FP16, paper's network"


def verdict(name: str, work: Path, **outcomes: Outcome) -> Verdict:
    """On the bar called ``name``, of a run in ``work`` in which all steps were done but for ``outcomes``."""
    (bar,) = [bar for bar in BARS if bar.name == name]
    told = {step.replace("_", "-"): outcome for step, outcome in outcomes.items()}
    every = {step: DONE for bar in BARS for step in (*bar.steps, *bar.beside)} | {"torch-all": DONE, "chain-64": DONE}
    return verdict_on(bar, Found(work, every | told))


def put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def test_names_are_of_one_bar_each() -> None:
    assert len({bar.name for bar in BARS}) == len(BARS)


class TestWhatDidNotRun:
    def test_says_why(self, tmp_path: Path) -> None:
        lacking = Outcome(state="not run", reason="tensorrt does not load")
        seen = verdict("100,000 tiles in a row", tmp_path, endurance=lacking)
        assert (seen.verdict, seen.measured, seen.reason) == ("NOT RUN", "", "tensorrt does not load")

    def test_shows_nothing_of_an_earlier_run(self, tmp_path: Path) -> None:
        put(tmp_path / "overlap.json", {"2 slots": {"ratio": 1.01}})
        assert verdict("end to end over the engine alone", tmp_path).verdict == "MET"
        late = Outcome(state="not run", reason="no time was left")
        assert verdict("end to end over the engine alone", tmp_path, overlap=late).reason == "no time was left"

    def test_shows_what_a_step_measured_before_it_was_ended(self, tmp_path: Path) -> None:
        put(tmp_path / "overlap.json", {"2 slots": {"ratio": 1.11}})
        ended = Outcome(state="failed", reason="did not end in 150 s")
        assert verdict("end to end over the engine alone", tmp_path, overlap=ended).verdict == "MISSED"

    @pytest.mark.parametrize("bar", BARS, ids=lambda bar: bar.name)
    def test_every_bar_survives_results_that_are_empty_or_missing(self, tmp_path: Path, bar: bars.Bar) -> None:
        if bar.judge is not bars.command_works:
            assert verdict(bar.name, tmp_path).verdict == "NOT RUN"
            for step in bar.steps:
                put(tmp_path / f"{step}.json", {})
                put(tmp_path / "logs" / f"{step}.log", "")
            assert verdict(bar.name, tmp_path).reason == "the result does not tell"

    def test_every_bar_without_a_run(self, tmp_path: Path) -> None:
        assert {verdict_on(bar, Found(tmp_path, {})).verdict for bar in BARS} == {"NOT RUN"}


class TestKernels:
    @pytest.fixture
    def written(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(KERNELS.read_text())
        return content

    def test_the_h100s_result(self, tmp_path: Path, written: dict[str, Any]) -> None:
        put(tmp_path / "cuda_kernels.json", written)
        seen = {bar.name: verdict(bar.name, tmp_path) for bar in BARS if bar.steps == bars.KERNELS}
        later = [name for name in seen if name.startswith("deep kernels")]
        assert {seen.pop(name).verdict for name in later} == {"NOT RUN"}, "they are newer than this result"
        assert {each.verdict for each in seen.values()} == {"MET"}
        assert seen["estimation and application of 64 tiles"].measured == "105.8 µs"
        assert seen["stain application of 64 tiles over a copy"].measured == "0.996"
        assert seen["stain: levels off in any tile"].measured == "1"

    @pytest.mark.parametrize(
        ("name", "keys", "value"),
        [
            ("estimation and application of 64 tiles", ("microseconds", "64 tiles", "stain", "both"), 150.1),
            ("stain application of 64 tiles over a copy", ("copy_bytes_per_second",), 3.0e12),
            ("stain: statuses other than the CPU's", ("stain", "statuses_different"), 1),
            ("stain: share of equal levels in any tile", ("stain", "worst_tile", "equal_share"), 0.9899),
            ("finish kernels: labels off", ("finish", "float16", "taps", "lead_where_off"), 0.01),
        ],
    )
    def test_a_miss(
        self, tmp_path: Path, written: dict[str, Any], name: str, keys: tuple[str, ...], value: float
    ) -> None:
        place = written
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        put(tmp_path / "cuda_kernels.json", written)
        assert verdict(name, tmp_path).verdict == "MISSED"

    @pytest.mark.parametrize(
        ("half", "single", "expected"), [(9e-4, 3e-6, "MET"), (1e-3, 3e-6, "MISSED"), (9e-4, 4e-6, "MISSED")]
    )
    def test_deep_kernels_round_as_their_types(self, tmp_path: Path, half: float, single: float, expected: str) -> None:
        errors = dict.fromkeys([kernel.name for kernel in DEEP_KERNELS], 0.0)
        errors |= {"deep_channels_last_half_4": half, "deep_planes_float_8": single}
        put(tmp_path / "cuda_kernels.json", {"deep": errors})
        assert verdict("deep kernels: error, FP16 and FP32", tmp_path).verdict == expected

    @pytest.mark.parametrize(("stock", "expected"), [(200.0, "MET"), (90.0, "MISSED"), (None, "NOT RUN")])
    def test_deep_kernels_beside_stock_operators(self, tmp_path: Path, stock: float | None, expected: str) -> None:
        names = (
            "planes",
            "channels_last",
            "copy_of_as_many_bytes",
            *["stock_operators_in_torch"] * (stock is not None),
        )
        numbers = dict(zip(names, (120.0, 100.0, 50.0, stock), strict=False))
        deep = {name: {"microseconds": value, "gigabytes_per_second": 1.0} for name, value in numbers.items()}
        put(tmp_path / "cuda_kernels.json", {"microseconds": {"64 tiles": {"deep": deep}}})
        seen = verdict("deep kernels of 64 tiles over stock operators", tmp_path)
        assert seen.verdict == expected
        assert seen.measured == (f"{stock / 100:.2f}× (100 µs, channels last)" if stock else "")
        assert ("no PyTorch that sees the GPU" in seen.reason) == (stock is None)


@pytest.mark.parametrize(
    ("log", "seen"),
    [
        ("ran every kernel\n========= ERROR SUMMARY: 0 errors", ("0 told", "MET")),
        ("ran every kernel\n========= ERROR SUMMARY: 3 errors", ("3 told", "MISSED")),
        ("===== ERROR SUMMARY: 0 errors\nran every kernel\n===== ERROR SUMMARY: 2 errors", ("2 told", "MISSED")),
        ("========= ERROR SUMMARY: 0 errors", ("", "NOT RUN")),
        ("========= COMPUTE-SANITIZER\n========= Error: No attachable process found.", ("", "NOT RUN")),
        ("ran every kernel\n===== RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", ("0 told", "MET")),
        ("ran every kernel\n===== RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)", ("1 told", "MISSED")),
    ],
)  # fmt: skip
def test_sanitizers(tmp_path: Path, log: str, seen: tuple[str, str]) -> None:
    put(tmp_path / "logs" / "memcheck.log", log)
    assert verdict("compute-sanitizer memcheck", tmp_path)[2:4] == seen


SKIPPING = "import pytest\ndef test_a(): pytest.skip('no GPU')\ndef test_b(): pytest.skip('no GPU')\n"


@pytest.mark.parametrize(
    ("tests", "seen"),
    [
        ("def test_a(): pass\ndef test_b(): pass", ("2 passed, 0 failed, 0 skipped", "MET", "")),
        ("def test_a(): pass\ndef test_b(): assert False", ("1 passed, 1 failed, 0 skipped", "MISSED", "")),
        (SKIPPING, ("", "NOT RUN", "no test ran: no GPU")),
        (SKIPPING + "def test_c(): pytest.skip('no plugin')", ("", "NOT RUN", "no test ran: no GPU; no plugin")),
        (SKIPPING + "def test_c(): pass", ("1 passed, 0 failed, 2 skipped", "MET", "")),
        ("import pytest\npytest.importorskip('no_such', reason='no kernels')", ("", "NOT RUN", "no kernels")),
        ("", ("", "NOT RUN", "no test ran: none is for this machine")),
        ("import nothing_of_that_name", ("0 passed, 1 failed, 0 skipped", "MISSED", "")),
    ],
)
def test_tests(tmp_path: Path, tests: str, seen: tuple[str, str, str]) -> None:
    put(tmp_path / "test_it.py", tests)
    result = tmp_path / "tests-kernels.xml"
    command = [sys.executable, "-m", "pytest", "-c", "/dev/null", "-q", f"--junitxml={result}", "test_it.py"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    *told, reason = verdict("GPU tests of the kernels", tmp_path)[2:]
    assert tuple(told) == seen[:2]
    assert seen[2] in reason if "importorskip" in tests else reason == seen[2]


def test_an_account_of_tests_that_was_cut_off(tmp_path: Path) -> None:
    put(tmp_path / "tests-kernels.xml", '<?xml version="1.0"?><testsuites><testsuite name="pyt')
    ended = Outcome(state="failed", reason="did not end in 240 s")
    assert verdict("GPU tests of the kernels", tmp_path, tests_kernels=ended).reason == "did not end in 240 s"


class TestEngines:
    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module, name, value in ((turns, "_TURN_S", 1e-9), (turns, "_PAUSE_S", 0), (rewrites_tensorrt, "TURNS", 1)):
            monkeypatch.setattr(module, name, value)

    def timed(self, work: Path, name: str, batch: int, *, alone: bool = False, **milliseconds: float) -> None:
        """As a round writes it, a batch of each form taking so many milliseconds; torch's forms are in capitals."""
        dashed = {n.replace("_", "-"): ms for n, ms in milliseconds.items()}
        forms = {f"torch {n.lower()}" if n.isupper() else n: ms for n, ms in dashed.items()}
        runs: rewrites_tensorrt.Forms = {(n, batch): partial(operator.mul, ms) for n, ms in forms.items()}
        rewrites_tensorrt.timed(runs, work, work / f"{name}.json", {"alone": alone})

    def test_at_the_bars(self, tmp_path: Path) -> None:
        self.timed(tmp_path, "engines-first", 16, plain=15, tail_less=10)
        self.timed(tmp_path, "torch-first", 16, EAGER=50, REDUCE_OVERHEAD=13, MAX_AUTOTUNE=14)
        late = Outcome(state="not run", reason="no time was left")
        assert verdict(FAST, tmp_path, engines_all=late)[2:4] == ("1.50× (tail-less over plain, batch 16)", "MET")
        seen = verdict(COMPILED, tmp_path, engines_all=late)
        assert seen[2:4] == ("1.30× (tail-less over torch reduce-overhead, batch 16)", "MET")

    def test_without_one_of_pytorchs_modes_it_may_be_missed_but_not_met(self, tmp_path: Path) -> None:
        self.timed(tmp_path, "engines-first", 16, tail_less=10)
        self.timed(tmp_path, "torch-first", 16, EAGER=50, REDUCE_OVERHEAD=14)
        late = Outcome(state="not run", reason="no time was left")
        seen = verdict(COMPILED, tmp_path, engines_all=late)
        assert (seen.verdict, seen.measured) == ("NOT RUN", "")
        ratio = "1.40× (tail-less over torch reduce-overhead, batch 16)"
        assert seen.reason.startswith(f"{ratio}, but not beside torch max-autotune and torch reduce-overhead")
        self.timed(tmp_path, "torch-first", 16, EAGER=50, REDUCE_OVERHEAD=12)
        assert verdict(COMPILED, tmp_path, engines_all=late).verdict == "MISSED"

    @pytest.mark.parametrize(
        ("milliseconds", "expected"),
        [
            (14.0, ("1.40× (tail-less over torch max-autotune, batch 64)", "MET", "")),
            (12.0, ("", "NOT RUN", "2.00× (tail-less over torch reduce-overhead, batch 16), but not beside")),
        ],
    )
    def test_a_batch_at_which_every_mode_was_timed_decides(
        self, tmp_path: Path, milliseconds: float, expected: tuple[str, str, str]
    ) -> None:
        partly = {"tail-less": 10.0, "torch reduce-overhead": 20.0}
        whole = {"tail-less": 10.0, "torch reduce-overhead": 15.0, "torch max-autotune": milliseconds}
        batches = ((16, partly), (64, whole))
        rows = [{"form": form, "batch": b, "ms_median": ms} for b, forms in batches for form, ms in forms.items()]
        put(tmp_path / "engines-all.json", {"timings": rows})
        *told, reason = verdict(COMPILED, tmp_path)[2:]
        assert tuple(told) == expected[:2] and reason.startswith(expected[2])

    @pytest.mark.parametrize("side", ["engines", "torch"])
    def test_those_that_did_not_meet_are_not_compared(self, tmp_path: Path, side: str) -> None:
        self.timed(tmp_path, "engines-all", 16, alone=side == "engines", plain=15, tail_less=10)
        peers = {"EAGER": 50.0, "REDUCE_OVERHEAD": 13.0, "MAX_AUTOTUNE": 14.0}
        self.timed(tmp_path, "torch-all", 16, alone=side == "torch", **peers)
        assert verdict(FAST, tmp_path).verdict == "MET"
        seen = verdict(COMPILED, tmp_path)
        assert (seen.verdict, seen.reason) == ("NOT RUN", bars.APART)
        died = Outcome(state="failed", reason="exit 1: CUDA out of memory")
        assert verdict(COMPILED, tmp_path, torch_first=died).reason == "exit 1: CUDA out of memory"

    def test_an_engine_that_was_left_out_says_why(self, tmp_path: Path) -> None:
        left_out = {"portable": "batch 64: out of memory", "int8": "this TensorRT refuses it"}
        put(tmp_path / "engines-all.json", {"left_out": left_out, "timings": []})
        assert verdict(INT8, tmp_path).reason == "int8: this TensorRT refuses it"
        unbuilt = Outcome(state="failed", reason="did not end in 300 s")
        assert verdict(INT8, tmp_path, build_int8=unbuilt).reason == "did not end in 300 s"

    @pytest.mark.parametrize(
        ("seen", "half", "expected"),
        [
            (0.9991, None, "MET"), (0.9989, None, "MISSED"), (0.9991, 1.0, "MET"), (0.9989, 1.0, "MISSED"),
            (0.981, 0.99, "MET"), (0.979, 0.99, "MISSED"),
        ],
    )  # fmt: skip
    def test_agreement(self, tmp_path: Path, seen: float, half: float | None, expected: str) -> None:
        engines = {"plain": {"agreement": 1.0}, "tail-less": {"agreement": seen}, "int8": {"agreement": 0.5}}
        put(tmp_path / "engines-all.json", {"accuracy": engines})
        put(tmp_path / "stages.json", {"agreement": seen})
        if half is not None:
            put(tmp_path / "torch-all.json", {"accuracy": {"agreement": half}})
            put(tmp_path / "chain-64.json", {"agreement": half})
        of_engines = verdict("engines give PyTorch's float32 class", tmp_path)
        assert of_engines.verdict == verdict("end to end gives PyTorch's float32 label", tmp_path).verdict == expected
        beside = "" if half is None else f"; PyTorch in FP16 {half:.3%}"
        assert of_engines.measured == f"{seen:.3%} (tail-less, the worst of 2){beside}"

    def test_the_last_round_counts(self, tmp_path: Path) -> None:
        self.timed(tmp_path, "engines-first", 64, plain=16, tail_less=10)
        self.timed(tmp_path, "engines-all", 64, plain=14, tail_less=10.5, portable=10, int8=5.25)
        self.timed(tmp_path, "torch-all", 64, EAGER=50, REDUCE_OVERHEAD=14, MAX_AUTOTUNE=12)
        assert verdict(FAST, tmp_path)[2:4] == ("1.40× (portable over plain, batch 64)", "MISSED")
        assert verdict(COMPILED, tmp_path)[2:4] == ("1.20× (portable over torch max-autotune, batch 64)", "MISSED")
        assert verdict(INT8, tmp_path)[2:4] == ("2.00× (int8 over tail-less, batch 64)", "MET")

    def test_a_single_tile_does_not_count(self, tmp_path: Path) -> None:
        self.timed(tmp_path, "engines-all", 1, plain=16, tail_less=10)
        assert verdict(FAST, tmp_path).verdict == "NOT RUN"

    def test_without_pytorch_the_engines_are_still_compared(self, tmp_path: Path) -> None:
        self.timed(tmp_path, "engines-first", 16, plain=16, tail_less=10)
        lacking = Outcome(state="not run", reason="torch does not load")
        assert verdict(FAST, tmp_path, torch_first=lacking, torch_all=lacking).verdict == "MET"
        seen = verdict(COMPILED, tmp_path, torch_first=lacking, torch_all=lacking)
        assert (seen.verdict, seen.reason) == ("NOT RUN", "torch does not load")


def test_training(tmp_path: Path) -> None:
    """As `gpu_training.py` wrote it after 3.8 minutes."""
    written = json.loads(KERNELS.with_name("gpu_training.json").read_text())
    put(tmp_path / "training.json", written)
    name = "trained for five minutes: Dice on colon patches"
    assert verdict(name, tmp_path)[2:4] == ("0.767 (scratch, no stain normalization)", "MISSED")
    written["runs"]["scratch, no stain normalization"]["test"]["Colon"]["foreground_dice"] = 0.78
    put(tmp_path / "training.json", written)
    assert verdict(name, tmp_path).verdict == "MET"


class TestInt8:
    def test_placements(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        told = {
            "float": {"result": "built", "ms_median": 0.1},
            "ours": {"result": "built", "ms_median": 0.1},
            "all": {"result": "killed", "exit": -6},
            "edge-float": {"result": "built", "ms_median": 2.0},
            "edge-ours": {"result": "built", "ms_median": 1.6},
        }
        self.built(tmp_path, monkeypatch, told)
        assert verdict("INT8: the recipe's placement is built", tmp_path)[2:4] == (
            "built and built; not built: all",
            "MET",
        )
        assert verdict("INT8 over FP16, edge network", tmp_path)[2:4] == ("1.25×", "MET")
        told["ours"] = {"result": "refused"}
        self.built(tmp_path, monkeypatch, told)
        assert verdict("INT8: the recipe's placement is built", tmp_path).verdict == "MISSED"
        told["edge-ours"] = {"result": "refused"}
        self.built(tmp_path, monkeypatch, told)
        reason = "edge-float: built, edge-ours: refused"
        assert verdict("INT8 over FP16, edge network", tmp_path)[3:] == ("NOT RUN", reason)

    def test_without_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.built(tmp_path, monkeypatch, {"float": {"result": "built", "ms_median": 0.1}}, more=["ours", "edge-ours"])
        assert verdict("INT8: the recipe's placement is built", tmp_path)[3:] == ("NOT RUN", "no time was left")
        assert verdict("INT8 over FP16, edge network", tmp_path)[3:] == ("NOT RUN", "edge-ours: no time was left")

    def built(
        self,
        work: Path,
        monkeypatch: pytest.MonkeyPatch,
        told: dict[str, dict[str, Any]],
        more: list[str] | None = None,
    ) -> None:
        """As ``int8_placements.py build`` writes what its children say."""
        for name in (*told, *(more or [])):
            put(work / int8_placements.FOLDER / f"{name}.onnx", "")
        monkeypatch.setattr(
            int8_placements, "_child", lambda _, names, end: iter([told[n] for n in names if n in told])
        )
        seconds = "0.05" if more else "60"
        arguments = int8_placements.parser().parse_args(["build", str(work), "--seconds", seconds])
        int8_placements.build(arguments)


class TestEndToEnd:
    """Its cases write what they measure; `test_gpu_cases.py` runs them."""

    def test_the_race(self, tmp_path: Path) -> None:
        put(tmp_path / "race-engine.json", {"alone": False, "tiles_per_s": 3000.0})
        torch = {"alone": False, "tiles_per_s": 900.0, "batch": 64, "rates": {"64": 890.0, "128": 880.0, "32": 700.0}}
        put(tmp_path / "race-torch.json", torch)
        won = ("3.33× (3000 over 900 tiles/s, PyTorch's batch 64 of 32, 64, 128)", "MET")
        assert verdict("end to end over PyTorch's best", tmp_path)[2:4] == won
        put(tmp_path / "race-torch.json", {**torch, "tiles_per_s": 1001.0})
        assert verdict("end to end over PyTorch's best", tmp_path).verdict == "MISSED"
        put(tmp_path / "race-torch.json", {**torch, "alone": True})
        assert verdict("end to end over PyTorch's best", tmp_path).reason == bars.APART
        lacking = Outcome(state="not run", reason="torch does not load")
        assert verdict("end to end over PyTorch's best", tmp_path, race_torch=lacking).reason == "torch does not load"

    @pytest.mark.parametrize(
        ("identical", "grown", "seen"), [(True, 8 << 20, "MET"), (True, 9 << 20, "MISSED"), (False, 0, "MISSED")]
    )
    def test_endurance(self, tmp_path: Path, identical: bool, grown: int, seen: str) -> None:
        content = {"tiles": 100352, "identical": identical, "grown_bytes": {"gpu": 0, "host": grown}}
        put(tmp_path / "endurance.json", content)
        assert verdict("100,000 tiles in a row", tmp_path).verdict == seen

    @pytest.mark.parametrize(("plain", "seen"), [(0.9, "MET"), (0.7, "MISSED")])
    def test_graphs(self, tmp_path: Path, plain: float, seen: str) -> None:
        put(tmp_path / "latencies.json", {"graph": {"p50": 0.8}, "plain launches": {"p50": plain}})
        assert verdict("graphs at one tile", tmp_path).verdict == seen


@pytest.mark.parametrize(
    ("outcome", "seen"),
    [
        (DONE, "MET"),
        (Outcome(state="kept", exit_code=0), "MET"),
        (Outcome(state="failed", exit_code=1, reason="exit 1: error: gate failed"), "MISSED"),
        (Outcome(state="failed", exit_code=3, reason="exit 3: error: not validated"), "NOT RUN"),
        (Outcome(state="failed", reason="did not end in 240 s"), "NOT RUN"),
    ],
)
def test_commands(tmp_path: Path, outcome: Outcome, seen: str) -> None:
    assert verdict("unetsharp validate", tmp_path, user_validate=outcome).verdict == seen
