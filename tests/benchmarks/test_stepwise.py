"""The orchestrator of long measurements, with steps that sleep, fail, hang, die, and are resumed."""

import asyncio
import errno
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import stepwise
from stepwise import Budget, Conductor, Outcome, Step, Wave

MINUTES = stepwise.USUAL_MINUTES


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepwise, "_FAREWELL_S", 0.2)


class Run:
    """Runs of one ``work`` folder, each with a conductor of its own."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.said: list[str] = []
        self.waves_ended = 0

    def conductor(self, minutes: float, machine: Mapping[str, Any]) -> Conductor:
        environment = {"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"}
        budget = Budget(minutes)
        return Conductor(work=self.work, machine=machine, budget=budget, environment=environment, say=self.said.append)

    def __call__(
        self, *waves: Wave | Step, minutes: float = MINUTES, machine: Mapping[str, Any] | None = None
    ) -> dict[str, Outcome]:
        conductor = self.conductor(minutes, machine or {})
        given = [wave if isinstance(wave, Wave) else Wave(lanes=[[wave]]) for wave in waves]
        asyncio.run(conductor.run(given, self.count))
        return conductor.outcomes

    def count(self) -> None:
        self.waves_ended += 1


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def python(name: str, code: str, **given: Any) -> Step:
    return Step(name=name, command=(sys.executable, "-c", code), **{"limit_s": 60.0, **given})


def appending(name: str, path: Path, **given: Any) -> Step:
    """A step that leaves a line in ``path`` each time it runs."""
    return python(name, f"open({str(path)!r}, 'a').write('once\\n')", **given)


def states(outcomes: Mapping[str, Outcome]) -> dict[str, str]:
    return {name: outcome.state for name, outcome in outcomes.items()}


def test_a_step_is_done_once(run: Run, tmp_path: Path) -> None:
    counter, result = tmp_path / "counter", tmp_path / "result"
    step = python(
        "works", f"print('some words'); open({str(counter)!r}, 'a').write('x'); open({str(result)!r}, 'w')",
        writes=(result,),
    )  # fmt: skip
    assert states(run(step)) == {"works": "done"}
    assert (tmp_path / "logs" / "works.log").read_text() == "some words\n"
    assert run.said[-1].endswith("s") and "25:00 left] works: done in" in run.said[-1].replace("24:59", "25:00")
    again = run(step)
    assert states(again) == {"works": "kept"} and again["works"].exit_code == 0
    assert counter.read_text() == "x"
    result.unlink()
    assert states(run(step)) == {"works": "done"}, "what it left is gone"
    assert counter.read_text() == "xx"
    assert run.waves_ended == 3


def test_what_it_was_done_from_decides_whether_it_is_kept(run: Run, tmp_path: Path) -> None:
    counter, given, code = tmp_path / "counter", tmp_path / "given", tmp_path / "code"
    (code / "package").mkdir(parents=True)
    (code / "package" / "module.py").write_text("one")
    given.write_text("one")
    step = appending("step", counter, reads=(given,), uses=(code, tmp_path / "not there"))

    def state(**machine: str) -> str:
        return run(step, machine=machine)["step"].state

    assert [state(), state()] == ["done", "kept"]
    given.write_text("two")
    assert [state(), state()] == ["done", "kept"]
    (code / "package" / "module.py").write_text("two")
    assert [state(), state()] == ["done", "kept"]
    (code / "package" / "__pycache__").mkdir()
    (code / "package" / "__pycache__" / "module.pyc").write_text("compiled")
    assert state() == "kept"
    assert [state(gpu="another"), state(gpu="another")] == ["done", "kept"]
    (tmp_path / "not there").write_text("now it is")
    assert state(gpu="another") == "done"


def test_one_that_fails_says_why_and_stops_only_what_needs_it(run: Run, tmp_path: Path) -> None:
    engine = tmp_path / "tail-less.plan"
    build = python("build", "print('some'); raise SystemExit('the parser does not know Mish')", writes=(engine,))
    race = python("race", "pass", reads=(engine,))
    other = python("other", "pass")
    lazy = python("lazy", "print('I forgot')", writes=(tmp_path / "result.json",))
    silent = python("silent", "raise SystemExit(4)")
    outcomes = run(Wave(lanes=[[build, race], [other, lazy, silent]]))
    assert states(outcomes) == {
        "build": "failed", "race": "not run", "other": "done", "lazy": "failed", "silent": "failed",
    }  # fmt: skip
    assert outcomes["build"].reason == "exit 1: the parser does not know Mish"
    assert outcomes["race"].reason == "without tail-less.plan, for build: exit 1: the parser does not know Mish"
    assert outcomes["lazy"].reason == "left no result.json: I forgot"
    assert outcomes["silent"].reason == "exit 4: it said nothing" and outcomes["silent"].exit_code == 4
    assert states(run(build))["build"] == "failed", "a failure is not kept"


def test_what_hangs_is_ended_with_all_it_started(run: Run, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    stubborn = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(60)"
    )
    begin = time.monotonic()
    outcomes = run(python("hangs", stubborn, limit_s=1.5), python("next", "pass"))
    assert time.monotonic() - begin < 10
    assert states(outcomes) == {"hangs": "failed", "next": "done"}
    assert outcomes["hangs"].reason.startswith("did not end in ") and outcomes["hangs"].exit_code is None
    assert not any(alive(int(pid)) for pid in pids.read_text().split())


def test_one_that_is_killed_has_failed(run: Run) -> None:
    outcomes = run(python("killed", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    assert outcomes["killed"].reason == "exit -9: it said nothing"


def test_a_program_that_is_not_there_has_failed(run: Run) -> None:
    outcomes = run(Step(name="lost", command=("/nowhere/python",), limit_s=1), python("next", "pass"))
    assert states(outcomes) == {"lost": "failed", "next": "done"}
    assert "/nowhere/python" in outcomes["lost"].reason


def test_a_full_disk_is_told_and_stops_no_other(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write = stepwise.write_json

    def full(path: Path, content: Any) -> None:
        if path.stem == "first":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(stepwise, "write_json", full)
    outcomes = run(python("first", "pass"), python("next", "pass"))
    assert states(outcomes) == {"first": "failed", "next": "done"}
    assert "No space left on device" in outcomes["first"].reason


def test_what_this_machine_lacks_is_not_run_and_keeps_nothing(run: Run) -> None:
    outcomes = run(python("able", "pass"), python("unable", "pass", lacking="tensorrt does not load"))
    assert states(outcomes) == {"able": "done", "unable": "not run"}
    assert outcomes["unable"].reason == "tensorrt does not load" and not outcomes["unable"].ran


class TestTime:
    def test_without_time_nothing_begins_but_what_is_done_stays(self, run: Run) -> None:
        first = python("first", "pass")
        run(first)
        outcomes = run(first, python("second", "pass"), minutes=0)
        assert states(outcomes) == {"first": "kept", "second": "not run"}
        assert outcomes["second"].reason == "no time was left"

    def test_the_budget_ends_a_step_before_its_limit(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stepwise, "_LEAST_S", 0.1)
        outcomes = run(python("long", "import time; time.sleep(30)"), minutes=1 / 60)
        assert outcomes["long"].state == "failed" and outcomes["long"].seconds < 5

    def test_a_wave_leaves_time_to_those_behind_it(self, run: Run) -> None:
        builds = Wave(lanes=[[python("build", "pass")]], leaves_s=60 * MINUTES)
        assert states(run(builds, python("race", "pass"), minutes=MINUTES)) == {"build": "not run", "race": "done"}

    def test_limits_grow_with_the_budget_and_shares_follow_it(self) -> None:
        assert [Budget(minutes).limit(100) for minutes in (5, MINUTES, 4 * MINUTES)] == [100, 100, 400]
        assert [Budget(minutes).share(100) for minutes in (MINUTES / 5, MINUTES, 4 * MINUTES)] == [20, 100, 400]

    def test_it_tells_what_runs(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stepwise, "_PULSE_S", 0.1)
        run(python("slow", "import time; time.sleep(0.5)"))
        assert any("… slow (0 s)" in line for line in run.said)


def test_lanes_run_side_by_side_and_waves_one_after_the_other(run: Run, tmp_path: Path) -> None:
    def meeting(name: str, other: str) -> Step:
        code = (
            "import pathlib, time\n"
            f"pathlib.Path({str(tmp_path / name)!r}).touch()\n"
            f"while not pathlib.Path({str(tmp_path / other)!r}).exists(): time.sleep(0.01)"
        )
        return python(name, code, limit_s=20)

    later = python("later", f"import os; print(sorted(os.listdir({str(tmp_path)!r})))")
    outcomes = run(Wave(lanes=[[meeting("a", "b")], [meeting("b", "a")]]), later)
    assert states(outcomes) == {"a": "done", "b": "done", "later": "done"}
    assert "'a', 'a.here', 'b'" in (tmp_path / "logs" / "later.log").read_text()


def test_those_that_take_turns_are_done_again_together(run: Run, tmp_path: Path) -> None:
    counters, engine = (tmp_path / "engines", tmp_path / "torch"), tmp_path / "plain.plan"
    engine.write_text("one")

    def race(lacking: str = "") -> Wave:
        engines = appending("engines", counters[0], reads=(engine,))
        return Wave(lanes=[[engines], [appending("torch", counters[1], lacking=lacking)]], takes_turns=True)

    assert states(run(race())) == {"engines": "done", "torch": "done"}
    assert states(run(race())) == {"engines": "kept", "torch": "kept"}
    engine.write_text("two")
    assert states(run(race())) == {"engines": "done", "torch": "done"}
    assert [counter.read_text().count("once") for counter in counters] == [2, 2]
    assert states(run(race(lacking="no PyTorch"))) == {"engines": "kept", "torch": "not run"}
    (tmp_path / "records" / "torch.json").unlink()
    assert states(run(race(), minutes=0)) == {"engines": "kept", "torch": "not run"}, "no time: what is there stays"


def test_interrupted_it_ends_what_runs_and_goes_on_from_there(run: Run, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    first = python("first", "pass")
    second = python("second", f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    conductor = run.conductor(MINUTES, {})

    async def interrupted() -> None:
        task = asyncio.create_task(conductor.run([Wave(lanes=[[first, second]])], run.count))
        while not (pid.exists() and pid.read_text()):
            await asyncio.sleep(0.01)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(interrupted())
    assert states(conductor.outcomes) == {"first": "done", "second": "failed"}
    assert conductor.outcomes["second"].reason == "interrupted"
    assert not alive(int(pid.read_text()))
    assert states(run(first, python("second", "pass"))) == {"first": "kept", "second": "done"}


def test_older_results_are_gone_when_a_step_begins(run: Run, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    result.write_text("of an earlier run")
    assert states(run(python("step", "pass", writes=(result,)))) == {"step": "failed"}
    assert not result.exists()


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not yet asked for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_every_step_is_announced_to_its_partner(run: Run, tmp_path: Path) -> None:
    step = python("torch-first", "import os; print(os.getpid())")
    run(step)
    assert (tmp_path / "torch-first.here").read_text() == (tmp_path / "logs" / "torch-first.log").read_text().strip()
