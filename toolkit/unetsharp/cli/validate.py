"""``unetsharp validate``: the proof of drift."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unetsharp.cli.bundle_options import Trust
from unetsharp.cli.output import Output

if TYPE_CHECKING:
    from unetsharp.validate.assessment import Assessment


def validate(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Folder or .zip that `unetsharp build-engine` wrote.")
    ],
    *,
    reference: Annotated[
        Path, typer.Option(metavar="WEIGHTS", help="Weights that the bundle came from; without PyTorch, its fp32 ONNX.")
    ],
    data: Annotated[Path, typer.Option(metavar="DIR", help="PanNuke, as it was downloaded and unpacked.")],
    fold: Annotated[
        int, typer.Option(metavar="K", help="Fold to validate on; best one that nothing was made with.")
    ] = 3,
    runtime: Annotated[
        str, typer.Option(metavar="R", help="auto, or the runtime to validate: tensorrt, tensorrt-rtx, onnxruntime.")
    ] = "auto",
    max_dice_drop: Annotated[
        float | None,
        typer.Option(metavar="X", help="Share of the reference's Dice a step may lose. [0.005 in INT8, else 0.001]"),
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(metavar="X", help="Least share of pixels that keep their class. [0.99 in INT8, else 0.999]"),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(metavar="N", help="Only so many patches, of every tissue and class.", show_default="all"),
    ] = None,
    trust: Trust = False,
    report: Annotated[Path, typer.Option(metavar="DIR", help="Folder for report.html and report.json.")] = Path(
        "drift-report"
    ),
    output: Output,
) -> None:
    """Prove what a deployed network changed, step by step, and hold it to limits.

    Every step from the trained weights to the bundle (export, rewrite, FP16 or INT8,
    engine) runs on the same labelled patches. Agreement, Dice and IoU by class,
    nuclei, panoptic quality and calibration are compared with the trained network and
    with the step before, with confidence intervals; report.html shows it all.

    Ends with 1 where a gate fails, and with 3 where a step could not run on this
    machine: it is listed as NOT RUN, and the bundle is not validated.

    A run that is stopped goes on from there when the same command is given again.

    \b
    Example:
      unetsharp validate bundle --reference weights.safetensors --data PanNuke
    """
    from unetsharp.evaluate.folds import open_fold_numbers

    (opened,) = open_fold_numbers(data, str(fold))  # before the slower imports: a slip is told at once

    from unetsharp.outputs.folder import check_folder
    from unetsharp.outputs.record import now
    from unetsharp.validate.gates import Limits
    from unetsharp.validate.record import circumstances_of, record_of
    from unetsharp.validate.summary import human
    from unetsharp.validate.validation import ValidateSettings, validate_bundle
    from unetsharp.validate.writing import write

    limits = Limits(max_dice_drop=max_dice_drop, min_agreement=min_agreement)
    settings = ValidateSettings(runtime=runtime, images=images, trust=trust, limits=limits)
    check_folder(report, "--report")
    started, unfinished = now(), report / ".unfinished"
    validation = validate_bundle(bundle, reference, opened, settings, output, unfinished)
    arguments = {"bundle": str(bundle), "reference": str(reference), "data": str(data), "fold": fold}
    arguments |= {"runtime": runtime, "images": images, "max_dice_drop": max_dice_drop, "min_agreement": min_agreement}
    arguments["trust"] = trust
    record = record_of(validation, circumstances_of(bundle, reference, arguments, started, now()))
    page, written = write(validation, record, report)
    shutil.rmtree(unfinished)
    output.result({**record, "files": [str(page), str(written)]}, human(validation, page))
    _end(validation.assessment, page)


validate.resume_hint = "give the same command again to go on; --images N takes fewer patches"  # type: ignore[attr-defined]


def _end(assessment: "Assessment", page: Path) -> None:
    """Raise what the exit code says, unless all ran and held."""
    from unetsharp_engines.errors import GateFailedError, MissingCapabilityError

    if failed := assessment.failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise GateFailedError(f"gate failed: {failed[-1]}{more}; {page} says more")
    if lacking := assessment.not_run:
        raise MissingCapabilityError(f"not validated: {lacking[-1].step.title} did NOT RUN: {lacking[-1].reason}")
