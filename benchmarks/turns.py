"""Timings by several processes on one GPU, in turns: each holds a lock while it measures, and gives it up between."""

import fcntl
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["in_turn", "meet", "per_image", "repeats_for"]

_TURN_S = 0.25
"""How long one turn measures."""
_PAUSE_S = 0.1
"""How long the lock is left to the others."""


@contextmanager
def in_turn(lock: Path) -> Iterator[None]:
    """Hold ``lock`` for the block; wait for it before, and leave it to others for a moment after."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    time.sleep(_PAUSE_S)


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


def meet(folder: Path, name: str, others: list[str], patience_s: float = 400) -> None:
    """Say in ``folder`` that ``name`` is ready, and wait until ``others`` are. Raises TimeoutError."""
    (folder / f"{name}.ready").touch()
    start = time.monotonic()
    while not all((folder / f"{other}.ready").exists() for other in others):
        if time.monotonic() - start > patience_s:
            raise TimeoutError(f"waited {patience_s:.0f} s for {', '.join(others)}")
        time.sleep(0.2)
