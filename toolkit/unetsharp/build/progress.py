"""TensorRT's nested build phases as one bar from 0 to 100, and the way to stop a build."""

import threading
from dataclasses import dataclass
from typing import Any

from unetsharp.cli.output import Advance

__all__ = ["PhaseTracker", "monitor"]


@dataclass
class _Phase:
    start: float
    """Where on the bar the phase begins, 0 to 100."""
    step: float
    """Length of each of its steps on the bar."""
    done: int = 0


class PhaseTracker:
    """Turns TensorRT's reports into moves of a bar: a phase fills the step of its parent in which it runs.

    TensorRT calls from several threads at once.
    """

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._position = 0.0
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Make TensorRT stop at the next step that it completes."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether it was asked to stop."""
        return self._cancelled.is_set()

    def phase_start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of ``steps`` steps begins within ``parent``'s present step."""
        with self._lock:
            outer = self._phases.get(parent) if parent else _Phase(start=0.0, step=100.0)
            if outer is not None and steps > 0:
                self._phases[name] = _Phase(start=outer.start + outer.done * outer.step, step=outer.step / steps)
            self._advance(0, name)

    def step_complete(self, name: str, step: int) -> bool:
        """Step number ``step`` (from 0) of a phase is done. False asks TensorRT to stop."""
        with self._lock:
            if (phase := self._phases.get(name)) is not None:
                phase.done = step + 1
                self._move_to(phase.start + phase.done * phase.step)
        return not self._cancelled.is_set()

    def phase_finish(self, name: str) -> None:
        """A phase is over, be it before its last step."""
        with self._lock:
            self._phases.pop(name, None)

    def _move_to(self, position: float) -> None:
        if position > self._position:
            self._advance(position - self._position)
            self._position = position


def monitor(trt: Any, tracker: PhaseTracker) -> Any:
    """An ``IProgressMonitor`` of the TensorRT module ``trt`` that reports to ``tracker``."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base is known at run time only
        """Passes on each call."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            tracker.phase_start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return tracker.step_complete(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            tracker.phase_finish(phase_name)

    return Monitor()
