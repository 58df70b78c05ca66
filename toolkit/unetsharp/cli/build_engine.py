"""``unetsharp build-engine``: ONNX → bundle."""

from pathlib import Path
from typing import Annotated

import typer

from unetsharp.cli.output import Output
from unetsharp_engines.errors import InputError


def build_engine(
    onnx: Annotated[
        Path, typer.Argument(metavar="FILE.onnx", help="Network that `unetsharp export` wrote, or a bundle with it.")
    ],
    out: Annotated[
        Path,
        typer.Option("-o", "--out", metavar="BUNDLE", help="Folder or .zip to write; a bundle there is replaced."),
    ],
    *,
    fp32: Annotated[bool, typer.Option("--fp32", help="Compute in float32 (TF32 off).")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Compute in float16: the default for TensorRT.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Compute in INT8, and in float what stays float: see `unetsharp quantize`.")
    ] = False,
    calibration: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For --int8: PanNuke; not needed for an ONNX quantized before.")
    ] = None,
    runtime: Annotated[str, typer.Option(metavar="NAME", help="auto, tensorrt, tensorrt-rtx or onnxruntime.")] = "auto",
    target: Annotated[
        str,
        typer.Option(
            metavar="SM[,SM…]",
            help="GPUs to build for, by compute capability: sm86,sm89. TensorRT builds for this machine's; "
            "TensorRT-RTX, without a GPU, by default for all from sm80 on.",
        ),
    ] = "",
    batch: Annotated[str, typer.Option(metavar="MIN,OPT,MAX", help="Tiles at once; fastest at OPT.")] = "1,8,16",
    level: Annotated[
        int | None, typer.Option(metavar="0…5", help="TensorRT only: how long to search for faster kernels.")
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TensorRT only: keep kernel timings here from build to build.")
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Give up after so long (TensorRT 10 and newer).")
    ] = None,
    workspace: Annotated[
        int | None, typer.Option(metavar="MB", help="TensorRT only: memory that a kernel may use beside its tensors.")
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="TensorRT only: an engine that later versions run, too.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="TensorRT only: one for every GPU from sm80 on, slower.")
    ] = False,
    add: Annotated[
        bool, typer.Option("--add", help="Add the engine to BUNDLE and keep those in it; the right one is run.")
    ] = False,
    output: Output,
) -> None:
    """Build an exported network into a bundle: engine, ONNX, manifest.

    An engine file is code, made for one TensorRT version and the GPUs it was built for; the manifest records both,
    with the SHA-256 of every file. The ONNX in the bundle runs everywhere.

    \b
    Example, on any machine, for GeForce RTX 30, 40 and 50:
      unetsharp build-engine model.onnx -o bundle --fp16 --target sm86,sm89,sm120

    \b
    and then on a Jetson, for it too:
      unetsharp build-engine bundle -o bundle --add
    """
    from unetsharp.build.builder import Tuning
    from unetsharp.build.pipeline import BuildOptions, build_bundle

    asked = [name for name, wanted in (("fp32", fp32), ("fp16", fp16), ("int8", int8)) if wanted]
    if len(asked) > 1:
        raise InputError(f"--{' and --'.join(asked)}: give one; every bundle has one precision")
    options = BuildOptions(
        runtime=runtime,
        precision=asked[0] if asked else None,
        calibration=calibration,
        targets=tuple(part.strip().lower() for part in target.split(",") if part.strip()),
        batch=_batch(batch),
        tuning=Tuning(
            level=level,
            timing_cache=timing_cache,
            workspace=workspace,
            time_limit=time_limit,
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
        ),
        add=add,
    )
    bundle = build_bundle(onnx, out, options, output)
    output.say(f"Bundle: {out}")
    output.result({"bundle": str(out), "manifest": bundle.manifest.to_dict()})


def _batch(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise InputError(f"--batch {text}: wanted three numbers MIN,OPT,MAX, such as 1,8,16")
    smallest, best, largest = (int(part) for part in parts)
    return smallest, best, largest
