"""Writing an ONNX where the user said ``-o``: one check of the name before the work, one whole write after it."""

from pathlib import Path

from unetsharp_engines.errors import InputError
from unetsharp_engines.files import replacing

__all__ = ["check_onnx_path", "write_whole"]


def check_onnx_path(path: Path) -> None:
    """Raise InputError unless ``path`` can become an ONNX file: called .onnx, and no folder."""
    if path.suffix != ".onnx":
        raise InputError(f"-o {path}: wanted a name that ends in .onnx")
    if path.is_dir():
        raise InputError(f"-o {path}: is a folder; wanted a file name in it")


def write_whole(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all; InputError where the place refuses it."""
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise InputError(f"-o {path}: cannot be written there ({error.strerror})") from error
