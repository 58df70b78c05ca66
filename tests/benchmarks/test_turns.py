"""Two processes that measure on one GPU: they wait for each other, take turns, and notice a partner that died."""

import asyncio
import itertools
import os
import sys
import time
from pathlib import Path

import pytest

import turns
from stepwise import Budget, Conductor, Step, Wave

RACER = """
import sys, time
from pathlib import Path
import turns
turns._PAUSE_S, turns._GRACE_S = 0.2, 1.0
work, me, other = Path(sys.argv[1]), *sys.argv[2:]
print(turns.meet(work, me, other, patience_s=20))
for _ in range(4):
    with turns.in_turn(work):
        begin = time.monotonic()
        time.sleep(0.05)
        print(begin, time.monotonic())
"""


def racer(work: Path, me: str, other: str) -> Step:
    return Step(name=me, command=(sys.executable, "-c", RACER, str(work), me, other), limit_s=30)


def run(work: Path, *steps: Step) -> dict[str, list[str]]:
    """What each said, side by side."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(turns.__file__).parent)}
    conductor = Conductor(work=work, machine={}, budget=Budget(25), environment=environment, say=print)
    wave = Wave(lanes=[[step] for step in steps], takes_turns=True)
    asyncio.run(conductor.run([wave], lambda: None))
    return {step.name: conductor.log(step.name).read_text().splitlines() for step in steps}


def test_turns_do_not_overlap(tmp_path: Path) -> None:
    said = run(tmp_path, racer(tmp_path, "engines", "torch"), racer(tmp_path, "torch", "engines"))
    assert said["engines"].pop(0) == said["torch"].pop(0) == "True"
    intervals = sorted((*map(float, line.split()), name) for name in said for line in said[name])
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(intervals))
    assert len(intervals) == 8
    assert len({name for *_, name in intervals[:4]}) == 2, "nobody has two turns while the other waits for his first"


@pytest.mark.parametrize("partner", ["raise SystemExit('the compiler failed')", "import os; os.kill(os.getpid(), 9)"])
def test_a_partner_that_dies_is_not_waited_for(tmp_path: Path, partner: str) -> None:
    begin = time.monotonic()
    dead = Step(name="torch", command=(sys.executable, "-c", partner), limit_s=30)
    said = run(tmp_path, racer(tmp_path, "engines", "torch"), dead)
    assert said["engines"][0].startswith("measured without torch, which did not come in")
    assert len(said["engines"]) == 6, "it measured all the same"
    assert time.monotonic() - begin < 10


def test_a_partner_that_prepares_is_waited_for(tmp_path: Path) -> None:
    late = Step(
        name="torch",
        command=(sys.executable, "-c", f"import time; time.sleep(2)\n{RACER}", str(tmp_path), "torch", "engines"),
        limit_s=30,
    )
    assert run(tmp_path, racer(tmp_path, "engines", "torch"), late)["engines"][0] == "True"


def test_one_that_never_comes_is_given_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns.announce(tmp_path, "torch", os.getpid())  # it lives, but is never ready
    assert not turns.meet(tmp_path, "engines", "torch", patience_s=0.3)
    assert "measured without torch" in capsys.readouterr().out


def test_a_lock_that_is_held_too_long_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_LONGEST_S", 0.1)
    held = pytest.raises(TimeoutError, match="held by another process")
    with turns.in_turn(tmp_path), held, turns.in_turn(tmp_path):
        pass


def test_rates_are_of_the_median() -> None:
    assert turns.per_image([4.0, 2.0, 3.0], batch=6) == {
        "ms_median": 3.0, "ms_least": 2.0, "ms_most": 4.0, "turns": 3, "images_per_s": 2000.0,
    }  # fmt: skip


def test_what_an_earlier_process_said_is_taken_back(tmp_path: Path) -> None:
    for said in ("here", "ready"):
        (tmp_path / f"torch.{said}").write_text(str(os.getpid()))
    turns.announce(tmp_path, "torch")
    assert not list(tmp_path.iterdir())
