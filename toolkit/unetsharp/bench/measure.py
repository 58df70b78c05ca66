"""The measurements: contestants take turns, so that whatever else the machine does, it does to all."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetsharp.bench.energy import metered
from unetsharp_engines.contract import LABEL_OF_CHANNEL
from unetsharp_engines.runtimes.base import Runtime
from unetsharp_engines.stain import IDENTITY, StainPlan

if TYPE_CHECKING:
    from unetsharp.bench.contestants import Contestant

__all__ = ["TURNS", "from_files", "latency", "stage_seconds", "throughput"]

TURNS = 5
TURN_S = 0.5
"""A turn lasts at least so long, and at least two batches."""
SINGLE_CALLS, SINGLE_S = 100, 5.0
"""Latency is of so many calls, or as many as fit into so many seconds."""

Tiles = npt.NDArray[np.uint8]
Advance = Callable[[], None]


def throughput(
    contestants: "Sequence[Contestant]", batch: int, tiles: Tiles, stain: StainPlan, advance: Advance
) -> list[dict[str, Any]]:
    """Tiles a second from host memory to host memory, of each contestant, batch after batch: median and spread.

    Turns go round: each contestant once, then each again. ``joules_per_tile`` is of all turns, where a GPU tells.
    """
    runtimes = [contestant.runtimes[batch] for contestant in contestants]
    counts = [_batches_in_a_turn(runtime, batch, tiles, stain) for runtime in runtimes]
    rates: list[list[float]] = [[] for _ in runtimes]
    joules: list[list[float]] = [[] for _ in runtimes]
    for _ in range(TURNS):
        for place, (runtime, count) in enumerate(zip(runtimes, counts, strict=True)):
            with metered(runtime.device) as energy:
                seconds = _row(runtime, count, batch, tiles, stain)
            rates[place].append(count * batch / seconds)
            if energy.joules is not None:
                joules[place].append(energy.joules / (count * batch))
            advance()
    return [
        {**_spread(rate), "joules_per_tile": statistics.fmean(j) if j else None}
        for rate, j in zip(rates, joules, strict=True)
    ]


def latency(runtime: Runtime, tiles: Tiles, stain: StainPlan) -> dict[str, float]:
    """Seconds of one call with one tile: ``p50``, ``p99``, and how many ``calls`` were made."""
    runtime.labels(tiles[:1], stain)
    times: list[float] = []
    while len(times) < SINGLE_CALLS and (sum(times) < SINGLE_S or len(times) < 5):
        tile = tiles[len(times) % len(tiles)][None]
        times.append(_seconds(partial(runtime.labels, tile, stain)))
    p50, p99 = np.percentile(times, (50, 99))
    return {"p50": float(p50), "p99": float(p99), "calls": len(times)}


def stage_seconds(runtime: Runtime, tiles: Tiles, stain: StainPlan) -> dict[str, float]:
    """What each stage of one batch takes: on a GPU by its own clock, else by the CPU's.

    A GPU's are `TensorRtRuntime.stage_seconds`. On the CPU the network's are those of its logits as scanned.
    """
    own: Callable[[Tiles, StainPlan], dict[str, float]] | None = getattr(runtime, "stage_seconds", None)
    if own is not None:
        return own(tiles, stain)
    as_scanned = StainPlan(IDENTITY)
    logits = runtime.logits(tiles, as_scanned)
    return {
        "stain": _median(lambda: stain.apply(tiles)),
        "network": _median(lambda: runtime.logits(tiles, as_scanned)),
        "finish": _median(lambda: LABEL_OF_CHANNEL[logits.argmax(axis=1)]),
    }


def from_files(runtime: Runtime, pictures: Sequence[Path], batch: int, stain: StainPlan) -> float:
    """Tiles a second where each tile is a PNG that is read and decoded, by threads ahead of the network."""
    with ThreadPoolExecutor() as readers, _timed() as seconds:
        tiles = readers.map(_read, pictures)
        groups = zip(*[iter(tiles)] * batch, strict=False)
        for _ in runtime.labels_of((np.stack(group) for group in groups), stain):
            pass
    return len(pictures) // batch * batch / seconds[0]


def _read(path: Path) -> Tiles:
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def _batches_in_a_turn(runtime: Runtime, batch: int, tiles: Tiles, stain: StainPlan) -> int:
    """How many batches fill a turn. It warms up, too: what is compiled at first use is compiled here."""
    _row(runtime, 4, batch, tiles, stain)
    return max(2, round(TURN_S / (_row(runtime, 2, batch, tiles, stain) / 2)))


def _row(runtime: Runtime, count: int, batch: int, tiles: Tiles, stain: StainPlan) -> float:
    """Seconds for ``count`` batches, one after the other, without a pause."""
    with _timed() as seconds:
        for _ in runtime.labels_of(repeat(tiles[:batch], count), stain):
            pass
    return seconds[0]


def _seconds(run: Callable[[], object]) -> float:
    with _timed() as seconds:
        run()
    return seconds[0]


def _median(run: Callable[[], object]) -> float:
    return statistics.median(_seconds(run) for _ in range(TURNS))


def _spread(rates: list[float]) -> dict[str, float]:
    return {"tiles_per_s": statistics.median(rates), "least": min(rates), "most": max(rates)}


@contextmanager
def _timed() -> Iterator[list[float]]:
    """Yield a list that holds the block's seconds once it has ended."""
    seconds: list[float] = []
    start = time.perf_counter()
    yield seconds
    seconds.append(time.perf_counter() - start)
