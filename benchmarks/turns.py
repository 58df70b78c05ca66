"""Timings by several processes on one GPU, in turns: each holds a lock while it measures, and gives it up between."""

import fcntl
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["arrive", "in_turn", "meet", "per_image", "repeats_for"]

_TURN_S = 0.25
"""How long one turn measures."""
_PAUSE_S = 0.1
"""How long the lock is left to the others."""
_LONGEST_S = 120


@contextmanager
def in_turn(lock: Path) -> Iterator[None]:
    """Hold ``lock`` for the block; wait for it before, and leave it to others for a moment after.

    Raises TimeoutError where another holds it for longer than any turn takes.
    """
    with lock.open("w") as file:
        begin = time.monotonic()
        while not _locked(file):
            if time.monotonic() - begin > _LONGEST_S:
                raise TimeoutError(f"{lock}: held by another process for {_LONGEST_S} s")
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


def arrive(folder: Path, name: str) -> None:
    """Say in ``folder`` that this process prepares to measure as ``name``, so that others wait for it in `meet`."""
    (folder / f"{name}.here").write_text(str(os.getpid()))


def meet(folder: Path, name: str, others: list[str], *, patience_s: float = 300, grace_s: float = 60) -> list[str]:
    """Say that ``name`` is ready, and wait until ``others`` are; returns those that came.

    One that prepares is waited for up to ``patience_s``; one that is not there, or died, for ``grace_s``: the rest is
    then measured without it.
    """
    (folder / f"{name}.ready").write_text(str(os.getpid()))
    begin = time.monotonic()
    missing = list(others)
    while missing := [other for other in missing if not _alive(folder / f"{other}.ready")]:
        waited = time.monotonic() - begin
        given_up = [
            other for other in missing if waited > (patience_s if _alive(folder / f"{other}.here") else grace_s)
        ]
        if given_up:
            print(f"measured without {', '.join(given_up)}, who did not come in {waited:.0f} s", flush=True)
            missing = [other for other in missing if other not in given_up]
        time.sleep(0.2)
    return [other for other in others if _alive(folder / f"{other}.ready")]


def _alive(file: Path) -> bool:
    """Whether the process that wrote its number into ``file`` still runs: files of earlier runs stay behind."""
    try:
        os.kill(int(file.read_text()), 0)
    except (OSError, ValueError):
        return False
    return True
