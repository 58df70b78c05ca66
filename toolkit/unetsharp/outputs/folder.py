"""Where a command writes to: checked before the work, written to after it, whole or not at all."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from unetsharp_engines.errors import InputError
from unetsharp_engines.files import replacing

__all__ = ["check_folder", "write_files"]


def check_folder(folder: Path, option: str) -> None:
    """Raise InputError, by the ``option`` that named it, unless files can be written to ``folder``, which is made."""
    probe = folder / ".probe"
    try:
        with replacing(probe):
            pass
        probe.unlink()
    except OSError as error:
        raise InputError(f"{option} {folder}: cannot be written to ({error.strerror}); name another folder") from error


def write_files(contents: Mapping[Path, bytes], option: str) -> None:
    """Write each path's content; no file appears before all of them are on the disk.

    Raises InputError, by the ``option`` that named the place, where it refuses them: a full disk, for one.
    """
    try:
        with ExitStack() as renaming:
            for path, content in contents.items():
                renaming.enter_context(replacing(path)).write_bytes(content)
    except OSError as error:
        names = " and ".join(str(path) for path in contents)
        raise InputError(f"{option} {names}: cannot be written there ({error.strerror}); name another place") from error
