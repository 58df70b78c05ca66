"""The folder that a command writes to, checked before the work."""

from pathlib import Path

from unetsharp_engines.errors import InputError
from unetsharp_engines.files import replacing

__all__ = ["check_folder"]


def check_folder(folder: Path, option: str) -> None:
    """Raise InputError, by the ``option`` that named it, unless files can be written to ``folder``, which is made."""
    probe = folder / ".probe"
    try:
        with replacing(probe):
            pass
        probe.unlink()
    except OSError as error:
        raise InputError(f"{option} {folder}: cannot be written to ({error.strerror}); name another folder") from error
