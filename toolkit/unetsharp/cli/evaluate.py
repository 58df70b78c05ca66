"""``unetsharp evaluate``: how good a network is on PanNuke."""

from pathlib import Path
from typing import Annotated

import typer

from unetsharp.cli.bundle_options import Rebuild, Trust
from unetsharp.cli.output import Output


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Weights (.safetensors), an ONNX or a bundle.")],
    *,
    data: Annotated[Path, typer.Option(metavar="DIR", help="PanNuke, as it was downloaded and unpacked.")],
    fold: Annotated[str, typer.Option(metavar="K", help="Fold to judge on; 1+2 takes two. The paper's is 3.")],
    runtime: Annotated[
        str, typer.Option(metavar="R", help="auto, or the runtime to use: tensorrt, tensorrt-rtx, onnxruntime, torch.")
    ] = "auto",
    trust: Trust = False,
    rebuild: Rebuild = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="Also write JSON, Markdown and pictures here.")
    ] = None,
    output: Output,
) -> None:
    """Judge a network on a PanNuke fold: the paper's table, by class and by tissue.

    IoU and Dice of every class and their two averages, bPQ and mPQ as PanNuke
    defines them, detection F1. A class that a fold lacks is called absent, never
    scored. Patches are stain-normalized one by one, as in training.

    \b
    Example:
      unetsharp evaluate weights.safetensors --data PanNuke --fold 3 --out report
    """
    from unetsharp.evaluate.folds import open_fold_numbers

    folds = open_fold_numbers(data, fold)  # before the slower imports: a slip of the command line is told at once
    for note in (note for opened in folds for note in opened.notes):
        output.warn(note)

    from unetsharp.evaluate.report import write_report
    from unetsharp.evaluate.run import evaluate as judge
    from unetsharp.evaluate.tables import human
    from unetsharp.outputs.folder import check_folder
    from unetsharp.outputs.record import about_model, about_system, now
    from unetsharp.runtimes import open_runtime

    if out is not None:
        check_folder(out, "-o")
    options = {"runtime": runtime, "trust": trust, "rebuild": rebuild}
    arguments = {"model": str(model), "data": str(data), "fold": fold, **options}
    started = now()
    with open_runtime(model, runtime, trust=trust, rebuild=rebuild, output=output) as network:
        with output.progress("Evaluating", total=sum(map(len, folds)), unit="patches") as advance:
            evaluation = judge(network, folds, advance)
        record = {
            "started": started,
            "finished": now(),
            "arguments": arguments,
            "system": about_system(network),
            "model": about_model(network.info, model),
            **evaluation.to_dict(),
        }
        written = [] if out is None else write_report(evaluation, record, network, folds, out)
    for path in written:
        output.say(f"Wrote {path}")
    output.result({**record, "files": [str(path) for path in written]}, human(evaluation))
