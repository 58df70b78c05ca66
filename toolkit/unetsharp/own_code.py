"""Which unetsharp this is, to the byte: from one commit to the next its version stays the same."""

import hashlib
from importlib.resources import files
from pathlib import Path

__all__ = ["code_sha256"]

_PACKAGES = ("unetsharp", "unetsharp_trainer", "unetsharp_engines")
_SUFFIXES = (".py", ".cu", ".cuh")


def code_sha256() -> str:
    """Hash of this program's own code, for what is kept from one run to the next: other code might judge otherwise."""
    paths = sorted(path for name in _PACKAGES for path in Path(str(files(name))).rglob("*"))
    sources = [path.read_bytes() for path in paths if path.suffix in _SUFFIXES]
    return hashlib.sha256(b"".join(sources)).hexdigest()
