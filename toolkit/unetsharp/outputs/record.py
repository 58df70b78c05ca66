"""``run.json``: what was run, on what, with what, how long it took, and what came out."""

import json
import platform
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from unetsharp.model_files import MANIFEST
from unetsharp_engines import __version__
from unetsharp_engines.errors import InputError
from unetsharp_engines.files import replacing, sha256_of
from unetsharp_engines.model_info import ModelInfo
from unetsharp_engines.runtimes.base import Runtime

__all__ = ["RECORD_NAME", "about_model", "about_system", "now", "read_pictures", "write"]

RECORD_NAME = "run.json"

_PACKAGES = ("numpy", "scipy", "scikit-image", "pillow", "tifffile", "imagecodecs")
"""Whose versions may change a result."""


def now() -> str:
    """The time, ISO 8601 with seconds, UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def about_system(runtime: Runtime) -> dict[str, Any]:
    """Versions and device."""
    return {
        "unetsharp": __version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "runtime": {"name": runtime.name, "version": runtime.version, "device": runtime.device},
    }


def about_model(info: ModelInfo, path: Path | None) -> dict[str, Any]:
    """The network: its name, its file (None: the one that ships) and that file's hash, what it was never taught.

    The hash of a bundle's folder is its manifest's, which holds those of all its files.
    """
    return {
        "name": info.name,
        "path": None if path is None else str(path),
        "sha256": _sha256(path),
        "weights_sha256": info.weights_sha256,
        "encoder": info.encoder,
        "width": info.width,
        "stain": info.stain,
        "untaught": list(info.untaught),
    }


def _sha256(model: Path | None) -> str:
    if model is None:
        with as_file(files("unetsharp") / "assets" / "edge.onnx") as shipped:
            return sha256_of(shipped)
    return sha256_of(model / MANIFEST if model.is_dir() else model)


def write(record: dict[str, Any], folder: Path) -> None:
    """Write ``record`` as the folder's `RECORD_NAME`."""
    with replacing(folder / RECORD_NAME) as temporary:
        temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_pictures(folder: Path) -> list[dict[str, Any]]:
    """The pictures of an earlier run's record; none if there is no record. InputError if it cannot be read."""
    path = folder / RECORD_NAME
    if not path.is_file():
        return []
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["pictures"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no record of a run ({error!r}); run without --resume") from error
