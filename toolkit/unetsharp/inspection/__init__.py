"""What a file is, without running anything in it."""

from pathlib import Path
from typing import Any

from unetsharp.model_files import ModelKind, kind_of

__all__ = ["look_at"]


def look_at(path: Path) -> dict[str, Any]:
    """Facts about the model file or bundle at ``path``, ready for JSON; ``kind`` says which of `ModelKind` it is.

    Raises InputError for what is none, or is broken.
    """
    kind = kind_of(path)
    if kind is ModelKind.WEIGHTS:
        from unetsharp.inspection.weights import facts_of
    elif kind is ModelKind.ONNX:
        from unetsharp.inspection.onnx_file import facts_of
    elif kind is ModelKind.BUNDLE:
        from unetsharp.inspection.bundle import facts_of
    else:
        from unetsharp.inspection.engine import facts_of
    return {"kind": kind.value, "path": str(path), **facts_of(path)}
