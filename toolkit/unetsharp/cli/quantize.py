"""``unetsharp quantize``: float ONNX → INT8 ONNX."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unetsharp.cli.output import Output, facts

if TYPE_CHECKING:
    from rich.console import RenderableType

    from unetsharp.quantize.quantizer import Quantized


def quantize(
    onnx: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="fp32 network that `unetsharp export` wrote.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE.onnx", help="File to write.")],
    *,
    calibration: Annotated[Path, typer.Option(metavar="DIR", help="PanNuke, as it was downloaded and unpacked.")],
    method: Annotated[str, typer.Option(metavar="NAME", help="entropy, percentile, mse or minmax.")] = "minmax",
    images: Annotated[
        int, typer.Option(metavar="N", help="Patches to calibrate on, and as many others to judge by.")
    ] = 128,
    runtime: Annotated[
        str,
        typer.Option(metavar="NAME", help="What will run it: tensorrt for both TensorRTs, or onnxruntime on a CPU."),
    ] = "tensorrt",
    max_dice_drop: Annotated[
        float, typer.Option(metavar="X", help="Share of the float network's foreground Dice that may be lost.")
    ] = 0.005,
    min_agreement: Annotated[
        float, typer.Option(metavar="X", help="Least share of pixels that must keep their class.")
    ] = 0.99,
    output: Output,
) -> None:
    """Quantize an exported network to INT8, and judge it before it is written.

    Patches of every tissue and class set the scales; other patches, with labels,
    say what INT8 lost. Layers that lose too much go back to float, the fewest that
    suffice. If that does not either, nothing is written. All that was measured
    goes into a JSON file beside the ONNX.

    TensorRT and ONNX Runtime want INT8 in different places: a file for one is slow on
    the other, or of no use there.

    \b
    Example:
      unetsharp quantize model.onnx -o model-int8.onnx --calibration PanNuke
    """
    from unetsharp.build.source import read_source
    from unetsharp.quantize.drift import Budget
    from unetsharp.quantize.quantizer import QuantizeSettings, quantize_source
    from unetsharp.quantize.state import forget
    from unetsharp.quantize.writing import check_path, write

    check_path(out, onnx)
    budget = Budget(max_dice_drop=max_dice_drop, min_agreement=min_agreement)
    settings = QuantizeSettings(method=method, images=images, budget=budget, runtime=runtime)
    quantized = quantize_source(read_source(onnx), calibration, settings, output, state=out)
    report = write(out, quantized)
    forget(out)
    output.result({"onnx": str(out), "report": str(report), **quantized.report}, _summary(out, report, quantized))


quantize.resume_hint = "give the same command again to go on"  # type: ignore[attr-defined]


def _summary(out: Path, report: Path, quantized: "Quantized") -> "RenderableType":
    drift = quantized.drift
    floats = [layer["name"] for layer in quantized.report["layers"] if layer["precision"] == "float"]
    rows = {
        "ONNX": f"{out}, {len(quantized.content) / 1e6:.1f} MB",
        "Report": str(report),
        "INT8": f"{quantized.report['int8_share_of_macs']:.1%} of the multiply-accumulates",
        "Float": ", ".join(
            f"{reason} {share:.1%}" for reason, share in quantized.report["float_share_of_macs"].items()
        ),
        "Back in float": ", ".join(floats) or "no layer had to be",
        "Foreground Dice": f"{drift.int8_dice:.4f}, float {drift.float_dice:.4f} ({-drift.dice_drop:+.3%}), "
        f"on {drift.images} patches it was not calibrated on",
        "Same class": f"{drift.agreement:.3%} of pixels",
    }
    return facts(rows)
