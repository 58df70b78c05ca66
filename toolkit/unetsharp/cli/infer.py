"""``unetsharp infer``: pictures → nuclei."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unetsharp.cli.bundle_options import Rebuild, Trust
from unetsharp.cli.output import Output
from unetsharp_engines.errors import InputError, MissingCapabilityError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from unetsharp.infer.run import Run


def infer(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT",
            help="Slides (SVS, tiled TIFF; with the extra wsi MRXS, NDPI and more), pictures (PNG, JPEG, TIFF, npy) "
            "and folders of them; of a folder, the files directly in it.",
        ),
    ],
    *,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Folder for the results.")],
    model: Annotated[
        Path | None,
        typer.Option(
            "-m",
            "--model",
            metavar="MODEL",
            help="Bundle, ONNX or weights; without it the edge-sized weights that ship.",
        ),
    ] = None,
    runtime: Annotated[
        str, typer.Option(metavar="NAME", help="auto, tensorrt, tensorrt-rtx, onnxruntime or torch.")
    ] = "auto",
    trust: Trust = False,
    rebuild: Rebuild = False,
    stain: Annotated[
        str,
        typer.Option(
            metavar="SCOPE",
            help="Normalize stains by one transform a picture (slide), each tile by its own (tile), by the transform "
            "in a JSON file (fixed:FILE), or not at all (none).",
        ),
    ] = "slide",
    mpp: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="µm per pixel of the pictures; else what a slide or TIFF states, else 0.25 with a warning.",
        ),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(
            metavar="PX",
            help="Pixels of 0.25 µm that neighbouring tiles share, by default half a tile. Less is faster, but what "
            "is found depends more on where tiles begin.",
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(metavar="N", help="Tiles to run at once; by default as many as suit the runtime.")
    ] = None,
    formats: Annotated[
        str, typer.Option(metavar="LIST", help="Which outputs to write for each picture.")
    ] = "geojson,csv,overlay,mask",
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what an earlier, equal run finished: pictures, and parts of a slide.")
    ] = False,
    output: Output,
) -> None:
    """Find and class the nuclei of slides and pictures.

    Slides of any size are segmented a square millimetre at a time, in about 1 GB of memory. A file that cannot be
    read is told and passed over; the exit code is then 2.

    \b
    Writes, for each picture,
      NAME.geojson      outlines, classes and areas, for QuPath
      NAME.csv          one line a nucleus
      NAME_overlay.png  the picture, or an overview, with outlines and a legend
      NAME_mask.png     the class of every pixel (a tiled .tif beyond 150 million)
    and counts.csv and run.json for the run.

    \b
    Example:
      unetsharp infer slide.svs -o nuclei
      unetsharp infer pictures/ -o nuclei --mpp 0.5
    """
    from unetsharp.infer.inputs import list_inputs
    from unetsharp.infer.resolution import check_mpp
    from unetsharp.infer.run import Run, parse_formats
    from unetsharp.infer.segmentation import Settings
    from unetsharp.infer.staining import StainSetting
    from unetsharp.outputs.record import about_model
    from unetsharp.runtimes import open_runtime

    files = list_inputs(inputs)
    if out.resolve() in {path.resolve() for path in inputs}:
        raise InputError(f"-o {out}: is an input too, so results would be inputs the next time; give another folder")
    wanted = parse_formats(formats)
    stated = None if mpp is None else check_mpp(mpp)
    settings = Settings(stain=StainSetting.parse(stain), overlap=overlap, batch=batch)
    arguments = {
        "inputs": [str(path) for path in inputs], "model": None if model is None else str(model), "out": str(out),
        "runtime": runtime, "trust": trust, "rebuild": rebuild, "stain": stain, "mpp": mpp, "overlap": overlap,
        "batch": batch, "formats": formats, "resume": resume,
    }  # fmt: skip
    with open_runtime(model, runtime, trust=trust, rebuild=rebuild, output=output) as opened:
        run = Run(
            opened,
            settings,
            mpp=stated,
            formats=wanted,
            folder=out,
            model=about_model(opened.info, model),
            arguments=arguments,
            output=output,
        )
        run.over(files, resume=resume)
    output.result(run.record, _summary(run, out))
    if run.failures:
        lacking = run.record["exit_status"] == MissingCapabilityError.exit_code
        raise (MissingCapabilityError if lacking else InputError)(
            f"{len(run.failures)} of {len(files)} files could not be segmented, as told above and in {out / 'run.json'}"
        )


infer.resume_hint = "the same command with --resume goes on"  # type: ignore[attr-defined]


def _summary(run: "Run", out: Path) -> "RenderableType | None":
    """A table with one row a picture, and where to look."""
    if not run.done:
        return None
    from rich.console import Group
    from rich.text import Text

    return Group(_table(run.done), Text(_where_to_look(run.done, out), no_wrap=True, overflow="ignore"))


def _table(pictures: list[dict[str, Any]]) -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    names = list(dict.fromkeys(name for picture in pictures for name in picture["counts"]))
    table = Table("Picture", *names, "All nuclei", "Seconds", show_footer=len(pictures) > 1)
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.justify = "right"
    for picture in pictures:
        counts = [picture["counts"].get(name, 0) for name in names]
        numbers = (f"{n:,}" for n in (*counts, sum(counts)))
        table.add_row(Text(picture["picture"]), *numbers, f"{sum(picture['seconds'].values()):.1f}")
    table.columns[0].footer = f"{len(pictures)} pictures"
    for column, total in zip(table.columns[1:-1], _totals(pictures, names), strict=True):
        column.footer = f"{total:,}"
    return table


def _totals(pictures: list[dict[str, Any]], names: list[str]) -> list[int]:
    by_class = [sum(picture["counts"].get(name, 0) for picture in pictures) for name in names]
    return [*by_class, sum(by_class)]


def _where_to_look(pictures: list[dict[str, Any]], out: Path) -> str:
    outputs = pictures[0]["outputs"]
    lines = [f"Results: {out}"]
    if "overlay" in outputs:
        lines.append(f"Look at: {out / outputs['overlay']}")
    if "geojson" in outputs:
        lines.append(f"QuPath:  open the picture, then drag {out / outputs['geojson']} onto it")
    return "\n".join(lines)
