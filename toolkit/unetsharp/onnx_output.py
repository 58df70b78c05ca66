"""The ONNX that the user named by ``-o``, checked before the work."""

from pathlib import Path

from unetsharp.outputs.folder import check_folder
from unetsharp_engines.errors import InputError

__all__ = ["check_onnx_path"]


def check_onnx_path(path: Path) -> None:
    """Raise InputError unless ``path`` can become an ONNX file: called .onnx, no folder, in one that can be written."""
    if path.suffix != ".onnx":
        raise InputError(f"-o {path}: wanted a name that ends in .onnx")
    if path.is_dir():
        raise InputError(f"-o {path}: is a folder; wanted a file name in it")
    check_folder(path.parent, "-o")
