"""``unetsharp validate`` that is stopped, and goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from support.painted_folds import TruthAndSaid
from support.painter_network import painter
from support.two_networks import SQUARES, Changed, chain, painted_fold, same, step, swapped
from unetsharp import machine, own_code
from unetsharp.build.pipeline import BuildOptions, build_bundle
from unetsharp.cli.output import Output, Verbosity
from unetsharp.validate import observing
from unetsharp.validate.chain import Chain
from unetsharp.validate.observing import Observed, observe
from unetsharp.validate.tally import Patch, read_patch
from unetsharp_engines.errors import InputError
from unetsharp_engines.stain import StainPlan
from unetsharp_trainer.data.pannuke import Fold

PROGRAM = str(Path(sys.executable).with_name("unetsharp"))
QUIET = Output(verbosity=Verbosity.QUIET)


class Counted(Changed):
    """Counts the tiles that it is given."""

    tiles = 0

    def _logits(self, tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan) -> npt.NDArray[np.float32]:
        Counted.tiles += len(tiles_NHWC)
        return super()._logits(tiles_NHWC, stain)


@pytest.fixture
def fold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fold:
    monkeypatch.setattr(Counted, "tiles", 0)
    return painted_fold(tmp_path, four_patches())


def four_patches() -> list[TruthAndSaid]:
    return [("Colon", SQUARES[: count + 1], SQUARES[:count]) for count in range(3)] + [("Breast", SQUARES, SQUARES)]


def networks(sha256: str = "") -> Chain:
    swapping = step("last", partial(Counted, swapped("Neoplastic", "Epithelial")))
    counting = step("counted", partial(Counted, same))
    return chain(counting, type(swapping)(**{**vars(swapping), "sha256": sha256}))


def patches(fold: Fold, count: int = 4) -> list[Callable[[], Patch]]:
    return [partial(read_patch, fold, index, (256, 256)) for index in range(count)]


def numbers(seen: Observed) -> list[Any]:
    """All but the times, as bytes where it is arrays."""
    tallies = [tally for ran in seen.ran for tally in (ran.tally, ran.against_reference, ran.against_previous)]
    counted = [{name: array.tobytes() for name, array in vars(tally).items()} for tally in tallies if tally]
    worst = [(w.patch.index, w.changed, w.reference.tobytes(), w.deployed.tobytes()) for w in seen.worst]
    return [counted, worst, seen.tissues, seen.nuclei.tolist()]


def test_a_run_that_was_stopped_goes_on_where_it_was(fold: Fold, tmp_path: Path) -> None:
    kept = tmp_path / "unfinished"
    whole = observe(networks(), patches(fold))
    done = []

    def stop_after_two(count: int) -> None:
        done.append(count)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        observe(networks(), patches(fold), stop_after_two, kept)
    Counted.tiles = 0
    assert numbers(observe(networks(), patches(fold), unfinished=kept)) == numbers(whole)
    assert Counted.tiles == 2 * (1 + 2), "two networks: to warm up, and on the two patches that were left"
    Counted.tiles = 0
    assert numbers(observe(networks(), patches(fold), unfinished=kept)) == numbers(whole)
    assert Counted.tiles == 0, "nothing is left to do"


def test_more_patches_take_up_fewer(fold: Fold, tmp_path: Path) -> None:
    observe(networks(), patches(fold, 3), unfinished=tmp_path / "unfinished")
    Counted.tiles = 0
    observe(networks(), patches(fold, 4), unfinished=tmp_path / "unfinished")
    assert Counted.tiles == 2 * (1 + 1)


def test_another_network_or_other_data_start_anew(fold: Fold, tmp_path: Path) -> None:
    kept = tmp_path / "unfinished"
    observe(networks(), patches(fold), unfinished=kept)
    (kept / ".DS_Store").touch()  # as a Mac leaves it anywhere
    Counted.tiles = 0
    observe(networks("ab" * 32), patches(fold), unfinished=kept)
    assert Counted.tiles == 2 * (1 + 4)
    assert len([path for path in kept.iterdir() if path.is_dir()]) == 1, "what the other run left is gone"
    Counted.tiles = 0
    changed = painted_fold(tmp_path / "other", [("Colon", SQUARES[1:], SQUARES)])
    observe(networks("ab" * 32), patches(changed, 1), unfinished=kept)
    assert Counted.tiles == 2 * (1 + 1)


@pytest.mark.parametrize("what", [(machine, "processor_name"), (observing, "code_sha256")])
def test_another_processor_or_program_starts_anew(
    fold: Fold, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: tuple[Any, str]
) -> None:
    """A folder that several machines see, or a program mended after the run that failed: both would be mixed."""
    for name in ("one", "other"):
        monkeypatch.setattr(*what, lambda name=name: name)
        Counted.tiles = 0
        observe(networks(), patches(fold, 1), unfinished=tmp_path / "unfinished")
        assert Counted.tiles == 2 * (1 + 1)


def test_a_program_is_known_by_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = own_code.code_sha256()
    monkeypatch.setattr(own_code, "files", lambda _: tmp_path)
    seen = {ours}
    for content in (b"1", b"2"):
        (tmp_path / "inner").mkdir(exist_ok=True)
        (tmp_path / "inner" / "module.py").write_bytes(content)
        seen.add(own_code.code_sha256())
    assert len(seen) == 3


def test_a_damaged_file_is_named(fold: Fold, tmp_path: Path) -> None:
    observe(networks(), patches(fold, 1), unfinished=tmp_path / "unfinished")
    (file,) = (tmp_path / "unfinished").glob("*/*")
    whole = file.read_bytes()
    flipped = [bytes([*whole[:at], whole[at] ^ 1, *whole[at + 1 :]]) for at in range(0, len(whole), 97)]
    for content in (b"", whole[:200], b"not what it was", *flipped):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"not what an earlier run kept .*; delete "):
            observe(networks(), patches(fold, 1), unfinished=tmp_path / "unfinished")


def test_a_reference_alone_is_kept_too(fold: Fold, tmp_path: Path) -> None:
    alone = [observe(chain(), patches(fold, 2), unfinished=tmp_path / "unfinished") for _ in range(2)]
    assert numbers(alone[0]) == numbers(alone[1])
    assert alone[1].ran[0].against_reference is None


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_command_ends_with_the_same_report(tmp_path: Path) -> None:
    squares = [[(name, row, column + shift, side) for name, row, column, side in SQUARES] for shift in range(16)]
    painted_fold(tmp_path / "PanNuke", [("Colon", some, some) for some in squares])
    painter(tmp_path / "m.onnx", hard=False)
    build_bundle(tmp_path / "m.onnx", tmp_path / "bundle", BuildOptions(runtime="onnxruntime"), QUIET)
    command = [PROGRAM, "validate", "bundle", "--reference", "m.onnx", "--data", "PanNuke", "--report"]
    subprocess.run([*command, "whole"], cwd=tmp_path, check=True, capture_output=True)
    with subprocess.Popen([*command, "killed"], cwd=tmp_path, stdout=subprocess.DEVNULL) as running:
        while not list(tmp_path.glob("killed/.unfinished/*/*.kept")):
            assert running.poll() is None, "it ended too early to be killed"
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
    assert not (tmp_path / "killed" / "report.json").exists()
    again = subprocess.run([*command, "killed"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "Taking up" in again.stderr
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["report.html", "report.json"]
    assert told(tmp_path / "killed") == told(tmp_path / "whole")


def told(report: Path) -> dict[str, Any]:
    """The report but for when and how fast it was made."""
    record: dict[str, Any] = json.loads((report / "report.json").read_text(encoding="utf-8"))
    del record["made"]
    for one in record["steps"]:
        del one["latency"]
    return record
