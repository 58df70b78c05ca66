"""From counts to conclusions: measures with intervals, changes, gates, the verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from unetsharp.validate.bootstrap import Estimate, estimate, weightings
from unetsharp.validate.gates import MIN_NUCLEI, Gate, Limits, Ungated
from unetsharp.validate.measures import pair_measures, step_measures
from unetsharp.validate.observing import NotRun, Observed, Ran, WorstPatch
from unetsharp.validate.tally import PairTally
from unetsharp_engines.contract import NUCLEUS_CLASSES

__all__ = ["Assessment", "Change", "StepResult", "Verdict", "assess"]

Floats = npt.NDArray[np.float64]
Samples = Mapping[str, Floats]
Estimates = Mapping[str, Estimate]


class Verdict(Enum):
    """What it all comes to."""

    PASSED = "passed"
    FAILED = "failed"
    INCOMPLETE = "incomplete"
    """No gate failed, but a step could not run."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a step changed against an earlier one."""

    earlier: str
    """Its key."""
    differences: Estimates
    """Of every measure of `measures.STEP_QUANTITIES`: later minus earlier."""
    kept: Estimates
    """Of every Dice: later divided by earlier."""
    pair: Estimates
    """`measures.PAIR_QUANTITIES`."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """A step that ran."""

    ran: Ran
    measures: Estimates
    """`measures.STEP_QUANTITIES`."""
    against_reference: Change | None
    """None for the reference itself."""
    against_previous: Change | None


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """All that is to be said of a chain."""

    steps: tuple[StepResult, ...]
    """Those that ran, the reference first."""
    not_run: tuple[NotRun, ...]
    gates: tuple[Gate, ...]
    ungated: tuple[Ungated, ...]
    patches: int
    tissues: Mapping[str, int]
    """Patches of each."""
    nuclei: Mapping[str, int]
    """True nuclei of each class."""
    worst: tuple[WorstPatch, ...]

    @property
    def verdict(self) -> Verdict:
        """A failed gate weighs more than a step that could not run."""
        if self.failed:
            return Verdict.FAILED
        return Verdict.INCOMPLETE if self.not_run else Verdict.PASSED

    @property
    def failed(self) -> tuple[Gate, ...]:
        """The gates that did not hold."""
        return tuple(gate for gate in self.gates if not gate.passed)


def assess(observed: Observed, limits: Limits) -> Assessment:
    """Draw the conclusions of ``observed``."""
    weights = weightings(len(observed.tissues))
    samples = [step_measures(ran.tally, observed.tissues, weights) for ran in observed.ran]
    steps = [_step(observed, samples, weights, place) for place in range(len(observed.ran))]
    gates, ungated = _gates(steps, observed.nuclei.tolist(), limits)
    names = sorted(set(observed.tissues))
    return Assessment(
        steps=tuple(steps),
        not_run=observed.not_run,
        gates=tuple(gates),
        ungated=tuple(ungated),
        patches=len(observed.tissues),
        tissues={name: observed.tissues.count(name) for name in names},
        nuclei=dict(zip((c.name for c in NUCLEUS_CLASSES), observed.nuclei.tolist(), strict=True)),
        worst=observed.worst,
    )


def _step(observed: Observed, samples: Sequence[Samples], weights: Floats, place: int) -> StepResult:
    ran, patches = observed.ran[place], len(observed.tissues)

    def change(earlier: int, tally: PairTally | None) -> Change | None:
        if tally is None:
            return None
        before, after = samples[earlier], samples[place]
        dice = [key for key in after if key.startswith("dice")]
        return Change(
            earlier=observed.ran[earlier].step.key,
            differences=_estimates({key: after[key] - before[key] for key in after}, patches),
            kept=_estimates({key: _quotient(after[key], before[key]) for key in dice}, patches),
            pair=_estimates(pair_measures(tally, weights), patches),
        )

    return StepResult(
        ran=ran,
        measures=_estimates(samples[place], patches),
        against_reference=change(0, ran.against_reference),
        against_previous=change(place - 1, ran.against_previous),
    )


def _estimates(samples: Samples, patches: int) -> Estimates:
    return {key: estimate(values, patches) for key, values in samples.items()}


def _quotient(after: Floats, before: Floats) -> Floats:
    """``after / before``; NaN where ``before`` is 0 or either is undefined."""
    return np.divide(after, before, out=np.full_like(after, np.nan), where=before > 0)


def _gates(steps: Sequence[StepResult], nuclei: Sequence[int], limits: Limits) -> tuple[list[Gate], list[Ungated]]:
    held, ungated = _gated_dice(steps[0], nuclei)
    gates = []
    for result in steps:
        if (change := result.against_reference) is not None:
            step, budget = result.ran.step.title, limits.of(result.ran.step.precision)
            agreement = change.pair["agreement"]
            gates.append(Gate(step=step, name="argmax agreement", kept=agreement, limit=budget.min_agreement))
            limit = 1.0 - budget.max_dice_drop
            gates += [Gate(step=step, name=name, kept=change.kept[key], limit=limit) for key, name in held.items()]
    return gates, ungated


def _gated_dice(reference: StepResult, nuclei: Sequence[int]) -> tuple[dict[str, str], list[Ungated]]:
    """Keys and names of the Dice that are gated, and what is not."""
    held, ungated = {"dice_foreground": "foreground Dice"}, []
    candidates = {"dice_class_mean": ("class-mean Dice", sum(nuclei), 1)} | {
        f"dice_{c.name.lower()}": (f"{c.name.lower()} Dice", count, MIN_NUCLEI)
        for c, count in zip(NUCLEUS_CLASSES, nuclei, strict=True)
    }
    for key, (name, count, least) in candidates.items():
        if count < least:
            ungated.append(Ungated(name=name, reason=f"{count} true nuclei; it would take {least}"))
        elif not reference.measures[key].value > 0:
            ungated.append(Ungated(name=name, reason="the reference itself has none to lose: its Dice is 0"))
        else:
            held[key] = name
    return held, ungated
