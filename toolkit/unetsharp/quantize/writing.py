"""The INT8 ONNX and, beside it, the report."""

import json
from pathlib import Path

from unetsharp.onnx_output import check_onnx_path
from unetsharp.outputs.folder import write_files
from unetsharp.quantize.quantizer import Quantized
from unetsharp_engines.errors import InputError

__all__ = ["check_path", "write"]


def check_path(path: Path, source: Path) -> None:
    """Raise InputError unless ``path`` can become an ONNX made of ``source``: another file, called .onnx."""
    check_onnx_path(path)
    if path.resolve() == source.resolve():
        raise InputError(f"-o {path}: is the network to quantize; name another file")


def write(path: Path, quantized: Quantized) -> Path:
    """Write ONNX and report (``path`` with .json), both or neither; returns the report's path."""
    report = path.with_suffix(".json")
    told = json.dumps(quantized.report, indent=1) + "\n"
    write_files({path: quantized.content, report: told.encode()}, "-o")
    return report
