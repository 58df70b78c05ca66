"""One pass over the patches: every network of the chain runs once on each, and all that is to be known is counted."""

import heapq
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from unetsharp.evaluate.run import stain_as_trained
from unetsharp.validate.chain import Chain, Step
from unetsharp.validate.tally import Compared, PairTally, Patch, Said, StepTally, compare, count
from unetsharp_engines.errors import MissingCapabilityError
from unetsharp_engines.runtimes.base import Runtime
from unetsharp_engines.stain import IDENTITY, StainPlan

__all__ = ["WORST", "NotRun", "Observed", "Ran", "WorstPatch", "observe"]

WORST = 10
"""Patches kept as pictures."""


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


@dataclass(eq=False)
class _Running:
    """A step that is open, and what it has given so far."""

    step: Step
    runtime: Runtime
    said: list[Said] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    against_reference: list[Compared] = field(default_factory=list)
    against_previous: list[Compared] = field(default_factory=list)

    def logits(self, tile_HWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        start = time.perf_counter()
        (logits,) = self.runtime.logits(tile_HWC[None], StainPlan(IDENTITY))
        self.seconds.append(time.perf_counter() - start)
        return np.asarray(logits)


def observe(
    chain: Chain,
    patches: Sequence[Callable[[], Patch]],
    advance: Callable[[int], object] = lambda _: None,
) -> Observed:
    """Run ``chain`` on ``patches``, each read when its turn comes. ``advance`` is told the patches just done.

    Patches are stain-normalized as in training, once for all networks. Raises MissingCapabilityError where the
    reference itself cannot run; other steps that cannot are listed.
    """
    plan = stain_as_trained(chain.info)
    with ExitStack() as stack:
        running, not_run = _opened(chain, stack)
        worst: list[WorstPatch] = []
        tissues, nuclei = [], []
        for number, read in enumerate(patches):
            patch = read()
            tile = plan.apply(patch.image[None])[0]
            if number == 0:
                _warm_up(running, tile)
            # Of equals the earlier is kept.
            worst = heapq.nlargest(WORST, [*worst, _run(running, patch, tile)], key=lambda seen: seen.changed)
            tissues.append(patch.tissue)
            nuclei.append(patch.nuclei)
            advance(1)
        return Observed(
            ran=tuple(_finished(r) for r in running),
            not_run=tuple(not_run),
            tissues=tuple(tissues),
            nuclei=np.sum(nuclei, axis=0),
            worst=tuple(seen for seen in worst if seen.changed),
        )


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


def _warm_up(running: Sequence[_Running], tile: npt.NDArray[np.uint8]) -> None:
    """Whatever a runtime does at its first run only is not to be in the times."""
    for r in running:
        r.logits(tile)
        r.seconds.clear()


def _run(running: Sequence[_Running], patch: Patch, tile: npt.NDArray[np.uint8]) -> WorstPatch:
    """Run every step on ``patch`` and count; returns what the first and the last said, the worst or not."""
    logits = [r.logits(tile) for r in running]
    for place, r in enumerate(running):
        r.said.append(count(patch, logits[place]))
        if place > 0:
            r.against_reference.append(compare(logits[0], logits[place]))
            again = r.against_reference[-1] if place == 1 else compare(logits[place - 1], logits[place])
            r.against_previous.append(again)
    reference, deployed = (logits[place].argmax(axis=0).astype(np.uint8) for place in (0, -1))
    changed = int((reference != deployed).sum())
    return WorstPatch(patch=patch, changed=changed, reference=reference, deployed=deployed)


def _finished(r: _Running) -> Ran:
    return Ran(
        step=r.step,
        runtime=f"{r.runtime.name} {r.runtime.version}",
        device=r.runtime.device,
        tally=StepTally.of(r.said),
        milliseconds=1000 * statistics.median(r.seconds),
        against_reference=PairTally.of(r.against_reference) if r.against_reference else None,
        against_previous=PairTally.of(r.against_previous) if r.against_previous else None,
    )
