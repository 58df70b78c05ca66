"""A bundle: its manifest, and whether every file is what the manifest says."""

from pathlib import Path
from typing import Any

from unetsharp.build.bundle import open_bundle, problems_of

__all__ = ["facts_of"]


def facts_of(path: Path) -> dict[str, Any]:
    """The manifest, and ``problems``: a line for each file whose hash does not fit, none for a sound bundle.

    Raises InputError for a folder that is no whole bundle.
    """
    bundle = open_bundle(path)
    return {
        "size": sum(entry.size for entry in bundle.manifest.files()),
        "manifest": bundle.manifest.to_dict(),
        "problems": problems_of(bundle),
        "runs_on": ["onnxruntime"],
    }
