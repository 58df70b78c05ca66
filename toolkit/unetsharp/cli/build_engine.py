"""``unetsharp build-engine``: ONNX → bundle."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unetsharp.cli.output import Output, facts
from unetsharp_engines.errors import InputError

if TYPE_CHECKING:
    from unetsharp.build.bundle import Bundle
    from unetsharp.build.manifest import EngineEntry


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
        bool, typer.Option("--int8", help="Compute in INT8, but where that costs too much: see `unetsharp quantize`.")
    ] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="For --int8: PanNuke. Leave it out for an ONNX that is quantized already."),
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
    batch: Annotated[
        str, typer.Option(metavar="MIN,OPT,MAX", help="Tiles that it takes at once; it is fastest at OPT.")
    ] = "1,8,16",
    level: Annotated[
        int | None,
        typer.Option(metavar="0…5", help="TensorRT only: how long to search for fast kernels. [TensorRT's own: 3]"),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TensorRT only: keeps what the search timed; the next build is faster."),
    ] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="TensorRT 10 and newer: give up after so long, writing nothing."),
    ] = None,
    workspace: Annotated[
        int | None,
        typer.Option(metavar="MB", help="TensorRT only: GPU memory that a kernel may use beside its tensors."),
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="TensorRT only: later versions of TensorRT run it, too.")
    ] = False,
    hardware_compatible: Annotated[
        bool,
        typer.Option("--hardware-compatible", help="TensorRT only: all GPUs from sm80 on run it, more slowly."),
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
    from unetsharp.outputs.folder import check_folder

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
    check_folder(out.parent, "-o")  # a build takes minutes
    bundle = build_bundle(onnx, out, options, output)
    output.result({"bundle": str(out), "manifest": bundle.manifest.to_dict()}, facts(dict(_summary(out, bundle))))


build_engine.resume_hint = (  # type: ignore[attr-defined]
    "nothing half-written was kept; the same command takes up calibration where it was, and builds again"
)


def _summary(out: Path, bundle: "Bundle") -> Iterator[tuple[str, str]]:
    from unetsharp.build.plugin import holds_plugin
    from unetsharp.inspection.bundle_rows import drift_told

    manifest = bundle.manifest
    runs = "only TensorRT takes it, for its own kernel" if holds_plugin(bundle.read_onnx()) else "runs on every machine"
    size = sum(entry.size for entry in manifest.files())
    yield "Bundle", f"{out}, {size / 1e6:.1f} MB; `unetsharp inspect {out}` shows all of it"
    yield "ONNX", f"{manifest.onnx.size / 1e6:.1f} MB, SHA-256 {manifest.onnx.sha256[:12]}…; {runs}"
    if manifest.engines:
        yield "Engine", "\n".join(_engine(engine, manifest.precision) for engine in manifest.engines)
    if drift := drift_told(manifest.quantization or {}):
        yield "INT8", drift


def _engine(engine: "EngineEntry", precision: str) -> str:
    (least, *_), (best, *_), (most, _, height, width) = (engine.profile[name] for name in ("min", "opt", "max"))
    return (
        f"{precision} by {engine.runtime} {engine.version} for {', '.join(engine.targets)}; {least} to {most} tiles of "
        f"{height}×{width}, best {best}; {engine.file.size / 1e6:.1f} MB"
    )


def _batch(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise InputError(f"--batch {text}: wanted three numbers MIN,OPT,MAX, such as 1,8,16")
    smallest, best, largest = (int(part) for part in parts)
    return smallest, best, largest
