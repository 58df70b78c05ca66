"""One pass over the patches: every network of the chain runs once on each, and all that is to be known is counted."""

import dataclasses
import heapq
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unetsharp import machine
from unetsharp.evaluate.run import stain_as_trained
from unetsharp.own_code import code_sha256
from unetsharp.validate.chain import Chain, Step
from unetsharp.validate.journal import remembered
from unetsharp.validate.tally import PairTally, Patch, Shown, StepTally, compare, count, of_network
from unetsharp_engines.errors import MissingCapabilityError
from unetsharp_engines.runtimes.base import Runtime
from unetsharp_engines.stain import IDENTITY, StainPlan

__all__ = ["WORST", "NotRun", "Observed", "Ran", "WorstPatch", "observe"]

WORST = 10
"""Patches kept as pictures."""

_JUDGES = ("numpy", "scipy", "scikit-image")
"""Packages that make nuclei of logits and judge them."""

_NO_PIXELS = np.empty((2, 0, 0), np.uint8)


@dataclass(frozen=True, kw_only=True)
class NotRun:
    """A step that this machine could not run."""

    step: Step
    reason: str
    """And how to make it run."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Ran:
    """A step that ran on every patch."""

    step: Step
    runtime: str
    """Name and version."""
    device: str
    tally: StepTally
    milliseconds: float
    """Median time of one patch, batch 1, from uint8 pixels to logits in main memory, the networks taking turns."""
    against_reference: PairTally | None
    """None for the reference itself."""
    against_previous: PairTally | None
    """Against the last step before it that ran."""


@dataclass(frozen=True, eq=False, kw_only=True)
class WorstPatch:
    """A patch on which reference and last step disagree most, and what both said."""

    patch: Patch
    changed: int
    """Pixels given another class."""
    reference: npt.NDArray[np.uint8]
    """Channel of each pixel, [h, w]."""
    deployed: npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False, kw_only=True)
class Observed:
    """What a pass over the patches showed."""

    ran: tuple[Ran, ...]
    """The reference first."""
    not_run: tuple[NotRun, ...]
    tissues: tuple[str, ...]
    """Of the patches, in order."""
    nuclei: npt.NDArray[np.int64]
    """True nuclei of each class, [5]."""
    worst: tuple[WorstPatch, ...]
    """Of the reference and the last step that ran, the worst first; those on which nothing changed are left out."""


@dataclass(frozen=True, eq=False)
class _Running:
    """A step that is open."""

    step: Step
    runtime: Runtime


class _Networks:
    """All steps that are open: call them with a patch to know what they show on it."""

    def __init__(self, running: Sequence[_Running], plan: StainPlan) -> None:
        self._runtimes = [r.runtime for r in running]
        self._plan = plan
        self._warm = False

    def __call__(self, patch: Patch) -> Shown:
        tile_NHWC = self._plan.apply(patch.image[None])
        self._warm_up(tile_NHWC)
        timed = [_timed_logits(runtime, tile_NHWC) for runtime in self._runtimes]
        logits = [said for said, _ in timed]
        by_reference = [compare(logits[0], later) for later in logits[1:]]
        # The first after the reference is compared with it in any case.
        by_previous = by_reference[:1] + [compare(*pair) for pair in pairwise(logits[1:])]
        return Shown(
            said=StepTally.of([count(patch, said) for said in logits]),
            against_reference=PairTally.of(by_reference),
            against_previous=PairTally.of(by_previous),
            seconds=np.array([seconds for _, seconds in timed]),
            extremes=np.stack([logits[place].argmax(axis=0).astype(np.uint8) for place in (0, -1)]),
        )

    def _warm_up(self, tile_NHWC: npt.NDArray[np.uint8]) -> None:
        """Whatever a runtime does at its first run only is not to be in the times."""
        for runtime in () if self._warm else self._runtimes:
            _timed_logits(runtime, tile_NHWC)
        self._warm = True


def _timed_logits(runtime: Runtime, tile_NHWC: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], float]:
    start = time.perf_counter()
    (logits,) = runtime.logits(tile_NHWC, StainPlan(IDENTITY))
    return np.asarray(logits), time.perf_counter() - start


def observe(
    chain: Chain,
    patches: Sequence[Callable[[], Patch]],
    advance: Callable[[int], object] = lambda _: None,
    unfinished: Path | None = None,
) -> Observed:
    """Run ``chain`` on ``patches``, each read when its turn comes. ``advance`` is told the patches just done.

    Patches are stain-normalized as in training, once for all networks. What each shows is kept in the folder
    ``unfinished``, if given, and a later call goes on from there; the caller removes it. Raises MissingCapabilityError
    where the reference itself cannot run; other steps that cannot are listed.
    """
    with ExitStack() as stack:
        running, not_run = _opened(chain, stack)
        look: Callable[[Patch], Shown] = _Networks(running, stain_as_trained(chain.info))
        if unfinished is not None:
            look = remembered(look, _identity(running), unfinished)
        shown: list[Shown] = []
        worst: list[WorstPatch] = []
        tissues, nuclei = [], []
        for read in patches:
            patch = read()
            seen = look(patch)
            # Of equals the earlier is kept.
            worst = heapq.nlargest(WORST, [*worst, _worst(patch, seen)], key=lambda one: one.changed)
            shown.append(dataclasses.replace(seen, extremes=_NO_PIXELS))
            tissues.append(patch.tissue)
            nuclei.append(patch.nuclei)
            advance(1)
        return Observed(
            ran=tuple(_ran(r, place, shown) for place, r in enumerate(running)),
            not_run=tuple(not_run),
            tissues=tuple(tissues),
            nuclei=np.sum(nuclei, axis=0),
            worst=tuple(seen for seen in worst if seen.changed),
        )


def _identity(running: Sequence[_Running]) -> list[object]:
    """All that decides what is seen on a patch: the tools, the networks, and what runs them.

    The processor is part of it: times are its own, and so is the order of sums.
    """
    networks = [[r.step.sha256, r.runtime.name, r.runtime.version, r.runtime.device] for r in running]
    return [code_sha256(), {name: version(name) for name in _JUDGES}, machine.processor_name(), networks]


def _worst(patch: Patch, seen: Shown) -> WorstPatch:
    reference, deployed = seen.extremes
    return WorstPatch(patch=patch, changed=seen.changed, reference=reference, deployed=deployed)


def _opened(chain: Chain, stack: ExitStack) -> tuple[list[_Running], list[NotRun]]:
    running, not_run = [], []
    for step in chain.steps:
        try:
            running.append(_Running(step, stack.enter_context(step.open())))
        except MissingCapabilityError as lacking:
            if not running:
                raise
            not_run.append(NotRun(step=step, reason=str(lacking)))
    return running, not_run


def _ran(r: _Running, place: int, shown: Sequence[Shown]) -> Ran:
    def pairs(part: str) -> PairTally | None:
        return of_network([getattr(seen, part) for seen in shown], place - 1) if place else None

    return Ran(
        step=r.step,
        runtime=f"{r.runtime.name} {r.runtime.version}",
        device=r.runtime.device,
        tally=of_network([seen.said for seen in shown], place),
        milliseconds=1000 * statistics.median(float(seen.seconds[place]) for seen in shown),
        against_reference=pairs("against_reference"),
        against_previous=pairs("against_previous"),
    )
