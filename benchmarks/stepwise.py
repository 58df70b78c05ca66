"""A long measurement in steps: each a process with a time limit, a log, and a record of what it was done from.

Steps come in waves, one after the other. The lanes of a wave run side by side, the steps of a lane in turn. A step that
was done from what is there now is kept; one whose command, files, code or machine changed is done again.
"""

import asyncio
import hashlib
import json
import os
import signal
import time
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from evidence import ROOT, write_json
from turns import announce
from unetsharp_engines.files import sha256_of

__all__ = ["Budget", "Conductor", "Found", "Lane", "Outcome", "Step", "Wave"]

USUAL_MINUTES = 25
"""A run's budget, to which the steps' limits belong."""
_LEAST_S = 5
"""With less time left no step begins."""
_FAREWELL_S = 5
"""Between asking a process to end and ending it."""
_PULSE_S = 30
"""How often is told what runs."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One process."""

    name: str
    """Also of its log, its record and its result."""
    command: tuple[str, ...]
    limit_s: float
    """In a run of `USUAL_MINUTES`; a longer run allows more."""
    reads: tuple[Path, ...] = ()
    """Files that it cannot do without."""
    uses: tuple[Path, ...] = ()
    """Files and folders that it is done from where they are there: code, and what other steps may have left."""
    writes: tuple[Path, ...] = ()
    """Files that it must leave. Older ones are removed before it begins."""
    lacking: str = ""
    """Why this machine cannot run it; empty if it can."""


Lane = Sequence[Step]


@dataclass(frozen=True, kw_only=True)
class Wave:
    """Steps that may run at the same time. What is timed is alone in its wave, or takes turns with a partner."""

    lanes: Sequence[Lane]
    leaves_s: float = 0
    """Seconds, of a run of `USUAL_MINUTES`, that it leaves to the waves behind it."""
    takes_turns: bool = False
    """Whether its steps are measured beside each other: then one that is done again has the others done again."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a step."""

    state: str
    """``done``, ``kept`` from an earlier run, ``failed``, or ``not run``."""
    reason: str = ""
    """Why it failed or did not run."""
    seconds: float = 0.0
    exit_code: int | None = None
    """None where it did not run, or was ended."""

    @property
    def ran(self) -> bool:
        """Whether what it left, if anything, is from what is there now."""
        return self.state != "not run"


@dataclass(frozen=True)
class Found:
    """The results of a run's steps. One that did not run has none, whatever an earlier run left."""

    work: Path
    outcomes: Mapping[str, Outcome]

    def json(self, step: str) -> Any:
        """What the step wrote; None without."""
        text = self._text(step, self.work / f"{step}.json")
        return None if text is None else json.loads(text)

    def log(self, step: str) -> str:
        """What the step said; empty without."""
        return self._text(step, self.work / "logs" / f"{step}.log") or ""

    def tests(self, step: str) -> Any:
        """JUnit's account of a step's tests; None without, and of one that was cut off."""
        text = self._text(step, self.work / f"{step}.xml")
        try:
            return None if text is None else ElementTree.fromstring(text).find("testsuite")
        except ElementTree.ParseError:
            return None

    def outcome(self, step: str) -> Outcome:
        """What became of the step."""
        return self.outcomes.get(step, Outcome(state="not run", reason="the run ended before it"))

    def _text(self, step: str, path: Path) -> str | None:
        is_there = self.outcome(step).ran and path.exists()
        return path.read_text(encoding="utf-8", errors="replace") if is_there else None


class Budget:
    """The time that a run may take."""

    def __init__(self, minutes: float) -> None:
        self._begin = time.monotonic()
        self._minutes = minutes

    @property
    def left_s(self) -> float:
        """Until the run is to end."""
        return 60 * self._minutes - self._elapsed_s

    def limit(self, seconds: float) -> float:
        """A limit in a run of `USUAL_MINUTES`, in this one: longer if it is longer, never shorter."""
        return seconds * max(1.0, self._minutes / USUAL_MINUTES)

    def share(self, seconds: float) -> float:
        """What stands for so many seconds of a run of `USUAL_MINUTES`."""
        return seconds * self._minutes / USUAL_MINUTES

    def told(self) -> str:
        """Elapsed and left."""
        return f"[{_clock(self._elapsed_s)}, {_clock(self.left_s)} left]"

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._begin


@dataclass
class Conductor:
    """Runs waves of steps."""

    work: Path
    """Folder of logs and records."""
    machine: Mapping[str, Any]
    """What results depend on beside commands, files and code: GPU, driver, versions."""
    budget: Budget
    environment: Mapping[str, str]
    say: Callable[[str], None]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """By step, of those that have ended."""
    _writers: dict[Path, str] = field(default_factory=dict)
    _running: dict[str, float] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)
    """Reasons that were told."""

    async def run(self, waves: Sequence[Wave], after_each: Callable[[], None]) -> None:
        """Run all; call ``after_each`` when a wave has ended. Cancelled, it ends what runs."""
        for name in ("logs", "records"):
            (self.work / name).mkdir(parents=True, exist_ok=True)
        every = [step for wave in waves for lane in wave.lanes for step in lane]
        self._writers = {path: step.name for step in every for path in step.writes}
        pulse = asyncio.create_task(self._pulse())
        try:
            for wave in waves:
                await self._wave(wave)
                after_each()
        finally:
            pulse.cancel()

    def log(self, step: str) -> Path:
        """Where a step's words go."""
        return self.work / "logs" / f"{step}.log"

    async def _wave(self, wave: Wave) -> None:
        leaves_s = self.budget.share(wave.leaves_s)
        able = [step for lane in wave.lanes for step in lane if not self._hindrance(step)]
        has_time = self.budget.left_s - leaves_s >= _LEAST_S
        if wave.takes_turns and has_time and not all(self._kept(step) for step in able):
            for step in able:
                self._record(step).unlink(missing_ok=True)
        await asyncio.gather(*(self._lane(lane, leaves_s) for lane in wave.lanes))

    async def _lane(self, lane: Lane, leaves_s: float) -> None:
        for step in lane:
            self.outcomes[step.name] = outcome = await self._step(step, self.budget.left_s - leaves_s)
            took = f" in {outcome.seconds:.0f} s" if outcome.state == "done" else ""
            why = f": {'as above' if outcome.reason in self._told else outcome.reason}" if outcome.reason else ""
            self._told.add(outcome.reason)
            self.say(f"{self.budget.told()} {step.name}: {outcome.state}{took}{why}")

    async def _step(self, step: Step, left_s: float) -> Outcome:
        if hindrance := self._hindrance(step):
            return Outcome(state="not run", reason=hindrance)
        if kept := self._kept(step):
            return kept
        if left_s < _LEAST_S:
            return Outcome(state="not run", reason="no time was left")
        for path in (*step.writes, self._record(step)):
            path.unlink(missing_ok=True)
        made_from = self._made_from(step)
        self._running[step.name] = begin = time.monotonic()
        try:
            code = await self._process(step, min(self.budget.limit(step.limit_s), left_s))
            outcome = self._judged(step, code, time.monotonic() - begin)
            write_json(self._record(step), {**asdict(outcome), "made_from": made_from})
        except OSError as error:  # no such program, or a full disk
            return Outcome(state="failed", reason=str(error))
        except asyncio.CancelledError:
            self.outcomes[step.name] = Outcome(state="failed", reason="interrupted")
            raise
        finally:
            del self._running[step.name]
        return outcome

    async def _process(self, step: Step, limit_s: float) -> int | None:
        """Run it; its exit code, or None where it had to be ended."""
        announce(self.work, step.name)
        with self.log(step.name).open("w", encoding="utf-8") as log:
            process = await asyncio.create_subprocess_exec(
                *step.command, stdin=DEVNULL, stdout=log, stderr=STDOUT, cwd=ROOT, env=self.environment,
                start_new_session=True,
            )  # fmt: skip
            announce(self.work, step.name, process.pid)
            try:
                return await asyncio.wait_for(process.wait(), limit_s)
            except asyncio.TimeoutError:
                return None
            finally:
                await _ended(process)

    def _judged(self, step: Step, code: int | None, seconds: float) -> Outcome:
        missing = [path.name for path in step.writes if not path.exists()]
        if code is None:
            reason = f"did not end in {seconds:.0f} s"
        elif code:
            reason = f"exit {code}: {_last_line(self.log(step.name))}"
        else:
            reason = f"left no {missing[0]}: {_last_line(self.log(step.name))}" if missing else ""
        return Outcome(state="failed" if reason else "done", reason=reason, seconds=seconds, exit_code=code)

    def _hindrance(self, step: Step) -> str:
        """Why a step cannot run; empty if it can."""
        missing = [path for path in step.reads if not path.exists()]
        return step.lacking or (self._without(missing[0]) if missing else "")

    def _kept(self, step: Step) -> Outcome | None:
        """What an earlier run left of it, if that ended well and was made from the same."""
        record = self._record(step)
        if not record.exists() or not all(path.exists() for path in step.writes):
            return None
        told = json.loads(record.read_text(encoding="utf-8"))
        if told.pop("made_from") != self._made_from(step) or told["state"] != "done":
            return None
        return Outcome(**{**told, "state": "kept"})

    def _made_from(self, step: Step) -> str:
        """A hash of all that the step is done from."""
        files = {str(path): _digest(path) for path in (*step.reads, *step.uses) if path.exists()}
        return hashlib.sha256(json.dumps([step.command, dict(self.machine), files]).encode()).hexdigest()

    def _without(self, path: Path) -> str:
        """Why a file is missing that a step reads."""
        writer = self._writers.get(path, "")
        outcome = self.outcomes.get(writer)
        return f"without {path.name}, for {writer}: {outcome.reason or outcome.state}" if outcome else f"no {path}"

    def _record(self, step: Step) -> Path:
        return self.work / "records" / f"{step.name}.json"

    async def _pulse(self) -> None:
        while True:
            await asyncio.sleep(_PULSE_S)
            running = [f"{name} ({time.monotonic() - begin:.0f} s)" for name, begin in self._running.items()]
            if running:
                self.say(f"{self.budget.told()} … {', '.join(running)}")


async def _ended(process: Process) -> None:
    """End a step's process and all that it started: it leads a group of its own."""
    if process.returncode is None:
        _signal(process, signal.SIGTERM)
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(process.wait(), _FAREWELL_S)
    _signal(process, signal.SIGKILL)
    await process.wait()


def _signal(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _digest(path: Path) -> str:
    """Of a file, or of all files in a folder but those that Python compiled."""
    if path.is_file():
        return sha256_of(path)
    files = sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return _joined(f"{file.relative_to(path)} {sha256_of(file)}" for file in files)


def _joined(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(int(seconds), 0), 60)
    return f"{minutes}:{rest:02d}"
