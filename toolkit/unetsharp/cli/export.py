"""``unetsharp export``: weights → ONNX."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unetsharp.cli.output import Output, facts

if TYPE_CHECKING:
    from rich.console import RenderableType

    from unetsharp.export.exporter import ExportReport


def export(
    weights: Annotated[
        Path, typer.Argument(metavar="WEIGHTS", help="Weights (.safetensors) that `unetsharp train` wrote.")
    ],
    *,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE.onnx", help="File to write.")],
    precision: Annotated[
        str, typer.Option(metavar="fp32|fp16", help="fp16 halves the file; its input and output stay float32.")
    ] = "fp32",
    size: Annotated[
        int, typer.Option(metavar="PX", help="Side of the tiles it takes: a multiple of 32, at most 384.")
    ] = 256,
    rewrite: Annotated[
        bool,
        typer.Option(
            help="Apply exact graph rewrites: the same function, faster: fewer bytes, mostly less arithmetic."
        ),
    ] = True,
    tail_less: Annotated[
        bool,
        typer.Option("--tail-less", help="End before the head's upsampling, which a fused GPU kernel then does."),
    ] = False,
    opset: Annotated[int, typer.Option(metavar="N", help="ONNX opset, 17 to 20; 17 parses from TensorRT 8.6 on.")] = 17,
    calibration: Annotated[
        Path | None, typer.Option(metavar="DIR", help="PanNuke: its patches say what fp16 must hold.")
    ] = None,
    output: Output,
) -> None:
    """Export weights to ONNX, and compare it with PyTorch before it is written.

    The ONNX takes any number of tiles at once and carries what it is: classes, resolution, stain normalization and
    the SHA-256 of its weights. One that differs from PyTorch is not written.

    Where fp16 would overflow or change the result, the fewest layers stay in float32.
    That is measured on tiles of a slide that ship, or on patches of yours.

    The rewrites, with what each saved, are listed in its metadata. With --no-rewrite the graph stays as traced, and
    ONNX Runtime is given it as it is. With --tail-less it ends at the head's low-resolution map: unetsharp's runtimes
    finish it, on a GPU by one kernel that also takes the class; other programs find in the metadata how.

    \b
    Example:
      unetsharp export weights.safetensors -o model.onnx
    """
    from unetsharp.export.exporter import ExportSettings, export_onnx

    settings = ExportSettings(
        precision=precision, size=size, opset=opset, rewrite=rewrite, tail_less=tail_less, calibration=calibration
    )
    report = export_onnx(weights, out, settings, output)
    output.result(report.to_dict(), _summary(report))


def _summary(report: "ExportReport") -> "RenderableType":
    seen, settings = report.comparison, report.settings
    rows = {
        "ONNX": f"{report.path}, {report.bytes / 1e6:.1f} MB",
        "SHA-256": report.sha256,
        "Network": f"{report.info.name}, {report.info.encoder}, width {report.info.width}",
        "Form": f"{settings.precision}, opset {settings.opset}, N × 3 × {settings.size} × {settings.size}",
        "Rewrites": _rewrites(report),
        **_half(report),
        "Difference": f"at most {seen.max_difference:.2g} in a logit, allowed {report.bound:.2g} "
        f"(logits reach {seen.largest_logit:.3g})",
        "Same class": f"{seen.agreement:.4%} of pixels on {seen.tiles} tiles of a real slide, as PyTorch says",
    }
    return facts(rows)


def _rewrites(report: "ExportReport") -> str:
    """Per image: arithmetic and bytes before and after."""
    if report.rewrites is None:
        return "none, as asked"
    before, after = report.rewrites.before, report.rewrites.after
    applied = [done.name for done in report.rewrites.passes if done.sites]
    return (
        f"{', '.join(applied)}: {before.macs / 1e9:.2f} → {after.macs / 1e9:.2f} GMAC, "
        f"{before.bytes / 1e6:.0f} → {after.bytes / 1e6:.0f} MB per image"
    )


def _half(report: "ExportReport") -> dict[str, str]:
    """What float16 could not hold."""
    if report.half is None:
        return {}
    half, weights = report.half, report.half.weights
    stays = f"{', '.join(half.islands)}: {half.float32_share_of_macs:.1%} of the multiply-accumulates"
    near = f"; {len(half.near_overflow)} tensors come near its end" if half.near_overflow else ""
    return {
        "In float32": stays if half.islands else f"nothing had to stay, by {half.pictures} pictures",
        "FP16 weights": f"{weights.coarse} too small for full precision, {weights.zeroed} of them zero now{near}",
    }
