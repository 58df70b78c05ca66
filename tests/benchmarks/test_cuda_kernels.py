"""The kernels' comparisons, on the emulator: in batches of which the last is smaller, and held to their bars."""

import json
from pathlib import Path

import pytest

import cuda_kernels
from bars import BARS, KERNELS, verdict_on
from cuda_tiles import hostile_tiles
from stepwise import Found, Outcome
from support.cuda_emulator import emulated_kernels
from support.cuda_machine import Machine


class EmulatedGpu(Machine):
    """Buffers may be freed."""

    def free(self) -> None:
        self._held.clear()


def test_the_emulated_kernels_meet_their_bars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_kernels, "BATCH", 2)
    gpu, tiles = EmulatedGpu(emulated_kernels(monkeypatch)), hostile_tiles()[8:11]
    found = {
        "stain": cuda_kernels.stain_equivalence(gpu, tiles),  # type: ignore[arg-type]
        "apply": cuda_kernels.apply_equivalence(gpu, tiles),  # type: ignore[arg-type]
        "finish": cuda_kernels.finish_equivalence(gpu, side=16, n=2, margin=3),  # type: ignore[arg-type]
    }
    assert found["stain"]["tiles"] == found["apply"]["tiles"] == sum(found["stain"]["statuses"].values()) == 3
    assert found["apply"]["identity_is_exact"] and found["stain"]["statuses"]["few-pixels"] == 1
    (tmp_path / "cuda_kernels.json").write_text(json.dumps(found))
    told = Found(tmp_path, dict.fromkeys(KERNELS, Outcome(state="done", exit_code=0)))
    bars = [bar for bar in BARS if bar.name.startswith(("stain:", "finish"))]
    assert len(bars) == 7
    assert {verdict_on(bar, told).verdict for bar in bars} == {"MET"}
