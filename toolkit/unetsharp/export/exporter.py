"""Weights → ONNX, compared with PyTorch before the file gets its name."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetsharp.build.flavours import PORTABLE_OPSET
from unetsharp.cli.output import Output
from unetsharp.export.comparison import Comparison, Gate, compare, sample_tiles
from unetsharp.export.torch_runtime import TorchRuntime
from unetsharp.export.tracing import trace
from unetsharp.onnx_output import check_onnx_path
from unetsharp.outputs.folder import write_files
from unetsharp_engines import __version__
from unetsharp_engines.contract import CLASSES, MAX_SIDE, SIDE_MULTIPLE, TILE
from unetsharp_engines.errors import InputError
from unetsharp_engines.files import sha256_of
from unetsharp_engines.model_info import METADATA_KEY, ModelInfo

if TYPE_CHECKING:
    import onnx

    from unetsharp.export.half import HalfReport
    from unetsharp_engines.rewrites import RewriteReport

__all__ = ["GATES", "HALF_KEY", "OPSETS", "Converted", "ExportReport", "ExportSettings", "convert", "export_onnx"]

OPSETS = range(PORTABLE_OPSET, 21)
"""ONNX opsets that can be written; PyTorch's exporter ends at 20."""

HALF_KEY = "unetsharp.float16"
"""Key in ONNX ``metadata_props`` under which an FP16 network says how it was made, as `HalfReport.to_dict` has it."""

GATES: Mapping[str, Gate] = {
    "fp32": Gate(max_difference=1e-4, agreement=0.999),
    "fp16": Gate(max_difference=0.02, agreement=0.995),
}
"""By precision: what the ONNX must hold against PyTorch in float32. Pixels whose two best classes are within rounding
of each other may change sides, hence no agreement of 1."""


_TAPS = (
    "nine taps a class at half resolution, then channels of zeros; float32 [N, 56, H/2, W/2]: the logits are the taps "
    "upsampled, shifted and added up, see unetsharp.tail"
)


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """How to write the ONNX. Raises InputError for values that cannot be."""

    precision: str = "fp32"
    """``fp32``, or ``fp16``: float16 weights and arithmetic between a float32 input and output."""
    size: int = TILE
    """Side of the square tiles it takes, pixels."""
    opset: int = OPSETS.start
    rewrite: bool = True
    """Whether to apply the exact rewrites that suit every runtime (`unetsharp_engines.rewrites`)."""
    tail_less: bool = False
    """Whether to end at the head's taps at half resolution (`unetsharp_engines.rewrites.HeadTail`), not at logits."""
    calibration: Path | None = None
    """PanNuke folder whose patches say what fp16 must hold; without, the three tiles of a slide that ship."""

    def __post_init__(self) -> None:
        if self.precision not in GATES:
            raise InputError(f"--precision {self.precision}: wanted one of {', '.join(GATES)}")
        if self.size % SIDE_MULTIPLE or not 0 < self.size <= MAX_SIDE:
            raise InputError(
                f"--size {self.size}: wanted a multiple of {SIDE_MULTIPLE} up to {MAX_SIDE}, such as {TILE}"
            )
        if self.opset not in OPSETS:
            raise InputError(f"--opset {self.opset}: wanted {OPSETS.start} to {OPSETS.stop - 1}")
        if self.calibration is not None and self.precision != "fp16":
            raise InputError(f"--calibration {self.calibration}: serves --precision fp16 alone; leave it out")
        if self.tail_less and not self.rewrite:
            raise InputError("--tail-less is a rewrite: leave --no-rewrite out")


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written and how it was found to be."""

    path: Path
    sha256: str
    bytes: int
    settings: ExportSettings
    info: ModelInfo
    comparison: Comparison
    bound: float
    """Of ``comparison.max_difference``."""
    rewrites: "RewriteReport | None"
    """What the rewrites did; None for a plain export."""
    half: "HalfReport | None"
    """How it was brought to float16; None for fp32."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        folder = self.settings.calibration
        settings = {**dataclasses.asdict(self.settings), "calibration": None if folder is None else str(folder)}
        return {**dataclasses.asdict(self), "path": str(self.path), "settings": settings}


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A network as ONNX, not compared yet."""

    content: bytes
    """The ONNX: the same bytes for the same weights, settings and versions."""
    info: ModelInfo
    rewrites: "RewriteReport | None"
    half: "HalfReport | None"


def convert(reference: TorchRuntime, settings: ExportSettings) -> Converted:
    """The network of ``reference``, which is on the CPU, as ONNX.

    Raises MissingCapabilityError without onnxsim, GateFailedError for a network that float16 cannot hold.
    """
    from unetsharp_engines.rewrites import PORTABLE, TAIL_LESS, rewrite

    traced = trace(reference.network, size=settings.size, opset=settings.opset)
    names = TAIL_LESS if settings.tail_less else PORTABLE
    exact, rewrites = rewrite(traced, names) if settings.rewrite else (traced, None)
    info = dataclasses.replace(reference.info, tile=settings.size, tool_version=__version__)
    model, half = _in_fp16(exact, info, settings) if settings.precision == "fp16" else (exact, None)
    _describe(model, info, half)
    return Converted(content=model.SerializeToString(), info=info, rewrites=rewrites, half=half)


def _in_fp16(
    model: "onnx.ModelProto", info: ModelInfo, settings: ExportSettings
) -> "tuple[onnx.ModelProto, HalfReport]":
    from unetsharp.export.half import calibration_pictures, careful_fp16, sample_pictures

    folder = settings.calibration
    pictures = calibration_pictures(folder, info, settings.size) if folder else sample_pictures(model, info)
    return careful_fp16(model, pictures)


def export_onnx(weights: Path, path: Path, settings: ExportSettings, output: Output) -> ExportReport:
    """Write the network of ``weights`` to ``path`` as ONNX, unless it differs from PyTorch.

    Raises InputError for unfit weights or path, MissingCapabilityError without PyTorch or onnxsim, GateFailedError
    where the ONNX, run by ONNX Runtime on the CPU, misses its gate; there is no file then.
    """
    check_onnx_path(path)
    with TorchRuntime(weights, device="cpu") as reference:
        output.say(f"Tracing {reference.info.name}: {reference.info.encoder}, width {reference.info.width}")
        converted = convert(reference, settings)
        for done in converted.rewrites.passes if converted.rewrites else ():
            saved = f"saves {done.macs_saved / 1e9:.3f} GMAC and {done.bytes_saved / 1e6:.1f} MB per image"
            output.detail(f"  {done.name}, {len(done.sites)} times, {saved}" + (f"; {done.note}" if done.note else ""))
        output.say("Comparing it with PyTorch on tiles of a real slide")
        seen = _compared(reference, converted.content, settings)
    write_files({path: converted.content}, "-o")
    return ExportReport(
        path=path,
        sha256=sha256_of(path),
        bytes=len(converted.content),
        settings=settings,
        info=converted.info,
        comparison=seen,
        bound=GATES[settings.precision].bound(seen),
        rewrites=converted.rewrites,
        half=converted.half,
    )


def _compared(reference: TorchRuntime, content: bytes, settings: ExportSettings) -> Comparison:
    from unetsharp_engines.runtimes.onnxruntime import OnnxRuntime

    with OnnxRuntime(content, tuned=False) as candidate:  # the file as it is
        seen = compare(reference, candidate, sample_tiles(settings.size))
    GATES[settings.precision].check(seen, f"the {settings.precision} ONNX")
    return seen


def _describe(model: "onnx.ModelProto", info: ModelInfo, half: "HalfReport | None") -> None:
    """Store ``info`` for programs, and what people look for when they open the file in a viewer.

    What the rewrites said of themselves stays.
    """
    import onnx

    from unetsharp_engines.rewrites import REWRITES_KEY, TAIL_KEY

    said = {entry.key: entry.value for entry in model.metadata_props if entry.key in (REWRITES_KEY, TAIL_KEY)}
    described = {
        METADATA_KEY: info.to_json(),
        "classes": ", ".join(f"{c.channel} {c.name}" for c in CLASSES),
        "resolution": f"{info.mpp} µm per pixel",
        "stain_normalization": _stain(info),
        "input": "RGB, uint8 level / 255, no mean and standard deviation; float32 [N, 3, H, W]",
        "output": _TAPS if TAIL_KEY in said else "logits before the softmax; float32 [N, 6, H, W]",
        "weights_sha256": info.weights_sha256,
    }
    if half is not None:
        described[HALF_KEY] = json.dumps(half.to_dict(), sort_keys=True)
    onnx.helper.set_model_props(model, said | described)
    model.producer_name, model.producer_version = "unetsharp", __version__


def _stain(info: ModelInfo) -> str:
    from unetsharp_engines.stain.target import TARGET_MAX_CONCENTRATIONS, TARGET_STAINS

    if info.stain == "none":
        return "none"
    return f"{info.stain}, to stains {TARGET_STAINS.tolist()}, concentrations {TARGET_MAX_CONCENTRATIONS.tolist()}"
