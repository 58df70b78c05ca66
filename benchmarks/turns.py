"""Timings by several processes on one GPU, in turns: each holds a lock while it measures, and gives it up between."""

import fcntl
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["announce", "in_turn", "meet", "per_image", "repeats_for"]

_TURN_S = 0.25
"""How long one turn measures."""
_PAUSE_S = 0.1
"""How long the lock is left to the others."""
_LONGEST_S = 120
_GRACE_S = 10.0
"""How long a partner is waited for that nobody has announced, or that died."""


@contextmanager
def in_turn(work: Path) -> Iterator[None]:
    """Have the GPU for the block: wait for it before, and leave it to others for a moment after.

    All who hold the lock in the folder ``work`` take turns. Raises TimeoutError where another holds it for longer than
    any turn takes.
    """
    with (work / "gpu.lock").open("w") as file:
        begin = time.monotonic()
        while not _locked(file):
            if time.monotonic() - begin > _LONGEST_S:
                raise TimeoutError(f"{file.name}: held by another process for {_LONGEST_S} s")
            time.sleep(0.01)
        yield
    time.sleep(_PAUSE_S)


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def repeats_for(once: Callable[[int], float]) -> int:
    """How many runs fill a turn; ``once(n)`` runs n times and returns milliseconds in all. It warms up, too."""
    once(3)
    return max(1, int(1e3 * _TURN_S / (once(3) / 3)))


def per_image(milliseconds: list[float], batch: int) -> dict[str, float]:
    """Median and spread of a batch's times, and what they come to in images a second."""
    middle = statistics.median(milliseconds)
    return {
        "ms_median": round(middle, 4),
        "ms_least": round(min(milliseconds), 4),
        "ms_most": round(max(milliseconds), 4),
        "turns": len(milliseconds),
        "images_per_s": round(1e3 * batch / middle, 1),
    }


def announce(work: Path, name: str, process: int | None = None) -> None:
    """Say in ``work`` that ``process`` was started as ``name``, so that a partner waits for it in `meet`.

    None, before it is started, takes back what an earlier one said.
    """
    if process is None:
        for said in ("here", "ready"):
            (work / f"{name}.{said}").unlink(missing_ok=True)
    else:
        (work / f"{name}.here").write_text(str(process))


def meet(work: Path, name: str, other: str, *, patience_s: float = 300) -> bool:
    """Say that ``name`` is ready to measure, and wait until ``other`` is; returns whether it is.

    One that prepares is waited for up to ``patience_s``. One that nobody announced, or that died, is told and the rest
    is measured without it.
    """
    (work / f"{name}.ready").write_text(str(os.getpid()))
    begin = last_seen = time.monotonic()
    while not _alive(work / f"{other}.ready"):
        now = time.monotonic()
        if _alive(work / f"{other}.here"):
            last_seen = now
        if now - begin > patience_s or now - last_seen > _GRACE_S:
            print(f"measured without {other}, which did not come in {now - begin:.0f} s", flush=True)
            return False
        time.sleep(0.2)
    return True


def _alive(file: Path) -> bool:
    """Whether the process that wrote its number into ``file`` still runs: files of earlier runs stay behind."""
    try:
        os.kill(int(file.read_text()), 0)
    except (OSError, ValueError):
        return False
    return True
