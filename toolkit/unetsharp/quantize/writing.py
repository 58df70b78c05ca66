"""The INT8 ONNX and, beside it, the report."""

import json
from pathlib import Path

from unetsharp.quantize.quantizer import Quantized
from unetsharp_engines.errors import InputError
from unetsharp_engines.files import replacing

__all__ = ["check_path", "write"]


def check_path(path: Path, source: Path) -> None:
    """Raise InputError unless ``path`` can become an ONNX made of ``source``: another file, called .onnx."""
    if path.suffix != ".onnx":
        raise InputError(f"-o {path}: wanted a name that ends in .onnx")
    if path.is_dir():
        raise InputError(f"-o {path}: is a folder; wanted a file name in it")
    if path.resolve() == source.resolve():
        raise InputError(f"-o {path}: is the network to quantize; name another file")


def write(path: Path, quantized: Quantized) -> Path:
    """Write ONNX and report (``path`` with .json), each whole or not at all; returns the report's path."""
    report = path.with_suffix(".json")
    try:
        with replacing(report) as temporary:
            temporary.write_text(json.dumps(quantized.report, indent=1) + "\n", encoding="utf-8")
        with replacing(path) as temporary:
            temporary.write_bytes(quantized.content)
    except OSError as error:
        raise InputError(f"-o {path}: cannot be written there ({error.strerror})") from error
    return report
