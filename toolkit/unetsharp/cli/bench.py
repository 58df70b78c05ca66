"""``unetsharp bench``: how fast, stage by stage, beside its peers."""

from pathlib import Path
from typing import Annotated

import typer

from unetsharp.cli.bundle_options import Trust
from unetsharp.cli.output import Output


def bench(
    models: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="BUNDLE",
            help="Bundles, ONNX or weights to measure; without any the edge-sized network that ships.",
        ),
    ] = None,
    *,
    batch: Annotated[str, typer.Option(metavar="N,...", help="Batch sizes.")] = "1,8",
    against: Annotated[
        str | None,
        typer.Option(
            metavar="PEER,...",
            help="Peers that run the same network, in turns: torch, torch-compile, torch-compile-max, onnxruntime, "
            "onnxruntime-cuda; and torchstain, for the stain step alone.",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="For PyTorch's peers: the weights that the first BUNDLE was made of."),
    ] = None,
    runtime: Annotated[
        str, typer.Option(metavar="R", help="auto, tensorrt, tensorrt-rtx, onnxruntime or torch.")
    ] = "auto",
    trust: Trust = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="Also write bench.json and bench.svg here.")
    ] = None,
    output: Output,
) -> None:
    """Measure throughput, latency, stages and energy, beside peers in the same run.

    Real tiles, from host memory to host memory, each normalized by its own stain
    estimate. Contestants take turns. On a GPU stages are timed by its own clock.
    The roofline is the GPU's data sheet, or what this CPU reaches now.

    \b
    Example:
      unetsharp bench --batch 1,8 --against torch --out bench
    """
    from unetsharp.bench.report import tables, write
    from unetsharp.bench.run import BenchSettings, parse_batches, parse_names
    from unetsharp.bench.run import bench as measure
    from unetsharp.outputs.folder import check_folder

    settings = BenchSettings(
        models=tuple(models or ()),
        runtime=runtime,
        against=parse_names(against),
        batches=parse_batches(batch),
        weights=weights,
        trust=trust,
    )
    if out is not None:
        check_folder(out, "-o")
    record = measure(settings, output)
    for path in write(record, out) if out is not None else ():
        output.say(f"Wrote {path}")
    output.result(record, tables(record))
