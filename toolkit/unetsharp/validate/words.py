"""The verdict, and what limits it, in plain words: the same on the terminal, in the JSON and on the page."""

from unetsharp.validate.assessment import Assessment, Verdict
from unetsharp.validate.bootstrap import RESAMPLES
from unetsharp.validate.markup import number, share
from unetsharp.validate.validation import Validation

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
        return f"Not validated: {assessment.not_run[-1].step.title} could not be run on this machine."
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
        f"gives them. Its foreground Dice is {after:.4f}, the reference's {before:.4f}: a change of "
        f"{number((kept.value - 1) * 100, '+.2f')}%{noise}. {_outcome(assessment)}"
    )


def _outcome(assessment: Assessment) -> str:
    if failed := assessment.failed:
        turn = (
            " Some of that is within the noise: more patches could turn it." if any(g.is_noise for g in failed) else ""
        )
        return f"Below their limits: {'; '.join(map(str, failed))}.{turn}"
    gates = f"All {len(assessment.gates)} gates"
    return f"{gates} of the steps that ran hold." if assessment.not_run else f"{gates} hold."


def not_gated(assessment: Assessment) -> str:
    """What has no gate, in a sentence; nothing where all have one."""
    reasons = "; ".join(f"{ungated.name} ({ungated.reason})" for ungated in assessment.ungated)
    return f"Not gated: {reasons}." if reasons else ""


def caveats(validation: Validation) -> list[str]:
    """What the numbers do not say, a sentence or two each."""
    assessment = validation.assessment
    notes = [f"{n.step.title} was NOT RUN: {n.reason.rstrip('.')}." for n in assessment.not_run]
    notes += validation.chain.left_out
    if validation.chain.steps[0].title != "PyTorch":
        notes.append(validation.chain.steps[0].origin)
    notes += _about_calibration(validation)
    if untaught := validation.chain.info.untaught:
        notes.append(f"The network was never taught {' and '.join(untaught)}: it cannot find such nuclei.")
    notes += filter(None, [not_gated(assessment)])
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
    how = (
        f"INT8 scales were set by {made['images']} patches of fold {_joined(set_by)} ({made['method']}), and layers "
        f"chosen by patches of fold {_joined(repaired_by)}"
    )
    if validation.fold in (*set_by, *repaired_by):
        return [f"{how}: fold {validation.fold} is among them, so this is no independent evidence."]
    return [f"{how}. Fold {validation.fold} is neither."]


def _joined(folds: list[int]) -> str:
    return "+".join(map(str, folds))


def _patches(assessment: Assessment) -> str:
    return "1 patch" if assessment.patches == 1 else f"{assessment.patches:,} patches"
