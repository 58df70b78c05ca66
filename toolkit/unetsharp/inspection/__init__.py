"""What a file is, without running anything in it."""

from pathlib import Path
from typing import Any

from unetsharp.model_files import ModelKind, kind_of

__all__ = ["look_at"]


def look_at(path: Path, *, trust: bool = False) -> dict[str, Any]:
    """Facts about the model file or bundle at ``path``, ready for JSON; ``kind`` says which of `ModelKind` it is.

    Nothing in it is run, unless it is an engine's own file and ``trust`` lets TensorRT load it for its layers. Raises
    InputError for what is none, or is broken; with ``trust`` MissingCapabilityError where that TensorRT is not here.
    """
    kind = kind_of(path)
    if kind is ModelKind.WEIGHTS:
        from unetsharp.inspection.weights import facts_of
    elif kind is ModelKind.ONNX:
        from unetsharp.inspection.onnx_file import facts_of
    elif kind is ModelKind.BUNDLE:
        from unetsharp.inspection.bundle import facts_of
    else:
        from unetsharp.inspection.engine import facts_of as facts_of_engine

        return {"kind": kind.value, "path": str(path), **facts_of_engine(path, trust=trust)}
    return {"kind": kind.value, "path": str(path), **facts_of(path)}
