"""The verdict, and what limits it, in plain words: the same on the terminal, in the JSON and on the page."""

from unetsharp.validate.assessment import Assessment, Verdict
from unetsharp.validate.bootstrap import RESAMPLES
from unetsharp.validate.markup import number, share
from unetsharp.validate.observing import NotRun
from unetsharp.validate.validation import Validation
from unetsharp_engines.contract import BACKGROUND

__all__ = ["caveats", "headline", "not_gated", "summary"]

_STANDING = (
    "Drift is measured against the trained network, not against pathologists: a faithful copy of a poor network is "
    "still poor. The Dice beside it says how good the network is on these patches.",
    "Times are medians of one patch at a time on this machine, the networks taking turns, beside whatever else it did.",
    "Research use only: this is no medical device.",
)


def headline(validation: Validation) -> str:
    """The verdict in one sentence."""
    assessment = validation.assessment
    deployed = validation.chain.steps[-1]
    if assessment.verdict is Verdict.FAILED:
        failed, gates = len(assessment.failed), len(assessment.gates)
        return f"Failed: {failed} of {gates} gates {'does' if failed == 1 else 'do'} not hold."
    if assessment.verdict is Verdict.INCOMPLETE:
        return f"Not validated: the {assessment.not_run[-1].step.title} could not be run on this machine."
    network = f"{deployed.precision.upper()} on {deployed.title}"
    return f"Passed: {network} says what the trained network says, within the limits."


def summary(validation: Validation) -> str:
    """What was seen of the last step that ran, in a few sentences."""
    assessment = validation.assessment
    last, reference = assessment.steps[-1], assessment.steps[0]
    if (change := last.against_reference) is None:
        return "Nothing but the reference ran."
    agreement, kept = change.pair["agreement"], change.kept["dice_foreground"]
    before, after = (step.measures["dice_foreground"].value for step in (reference, last))
    noise = ", which is within the noise of these patches" if kept.covers(1.0) and kept.value != 1.0 else ""
    return (
        f"On {_patches(assessment)} of fold {validation.fold}, {last.ran.step.title} in "
        f"{last.ran.step.precision.upper()} gives {share(agreement.value)} of the pixels the class that the reference "
        f"gives them. Its foreground Dice is {after:.4f}, the reference's {before:.4f}: {_changed_by(kept.value)}"
        f"{noise}. {_outcome(assessment)}"
    )


def _changed_by(kept: float) -> str:
    percent = (kept - 1) * 100
    if percent == 0:
        return "no change"
    return f"a change of {number(percent, '+.2f')}%" if abs(percent) >= 0.01 else "a change of less than 0.01%"


def _outcome(assessment: Assessment) -> str:
    if failed := assessment.failed:
        turn = (
            " Some of that is within the noise: more patches could turn it." if any(g.is_noise for g in failed) else ""
        )
        return f"Below their limits: {'; '.join(map(str, failed))}.{turn}"
    gates = f"All {len(assessment.gates)} gates"
    if not assessment.not_run:
        return f"{gates} hold."
    return f"{gates} of the steps that ran hold. {' '.join(map(_lacking, assessment.not_run))}"


def _lacking(not_run: NotRun) -> str:
    return f"NOT RUN: the {not_run.step.title}: {not_run.reason.rstrip('.')}."


def not_gated(assessment: Assessment) -> str:
    """What has no gate, in a sentence; nothing where all have one."""
    by_reason: dict[str, list[str]] = {}
    for ungated in assessment.ungated:
        by_reason.setdefault(ungated.reason, []).append(ungated.name)
    groups = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in by_reason.items())
    return f"Not gated: {groups}." if groups else ""


def caveats(validation: Validation) -> list[str]:
    """What the numbers do not say, a sentence or two each."""
    assessment = validation.assessment
    notes = [*map(_lacking, assessment.not_run), *validation.chain.left_out]
    if validation.chain.steps[0].title != "PyTorch":
        notes.append(validation.chain.steps[0].origin)
    notes += _about_calibration(validation)
    if untaught := validation.chain.info.untaught:
        notes.append(f"The network was never taught {' and '.join(untaught)}: it cannot find such nuclei.")
    notes += _about_unknown(assessment)
    notes.append(
        f"Intervals (95%) come from drawing the {_patches(assessment)} anew {RESAMPLES:,} times. Patches of one slide "
        "resemble each other, so other slides may differ more."
    )
    return [*notes, *_STANDING]


def _about_calibration(validation: Validation) -> list[str]:
    if (made := validation.chain.quantization) is None:
        return []
    set_by, repaired_by = made.get("calibration_folds"), made.get("judged_by_folds")
    if set_by is None or repaired_by is None:
        return ["The INT8 ONNX does not say which folds it was calibrated on, so these patches may be among them."]
    made_by = (
        f"INT8 scales were set by {made['images']} patches of fold {_joined(set_by)} ({made['method']}), and layers "
        f"chosen by patches of fold {_joined(repaired_by)}, of the folder given to quantize."
    )
    if validation.fold in (*set_by, *repaired_by):
        return [f"{made_by} If that is this one, fold {validation.fold} is among them and no independent evidence."]
    return [f"{made_by} If that is this one, fold {validation.fold} is neither."]


def _about_unknown(assessment: Assessment) -> list[str]:
    tally = assessment.steps[0].ran.tally
    unknown = int(tally.unknown.sum())
    nucleus = unknown + int(tally.pixels[:, : BACKGROUND.channel].sum())
    if not unknown:
        return []
    return [
        f"{share(unknown / nucleus)} of the nuclei's pixels are of unknown class: they count for the foreground alone."
    ]


def _joined(folds: list[int]) -> str:
    return "+".join(map(str, folds))


def _patches(assessment: Assessment) -> str:
    return "1 patch" if assessment.patches == 1 else f"{assessment.patches:,} patches"
