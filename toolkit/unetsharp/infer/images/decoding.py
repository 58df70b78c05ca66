"""Where decoders' many exceptions become one line."""

import struct
import tokenize
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tifffile import TiffFileError

from unetsharp_engines.errors import InputError

__all__ = ["decoding"]

_DECODER_ERRORS = (
    OSError, ValueError, SyntaxError, RuntimeError, EOFError, LookupError, TypeError, ArithmeticError,
    struct.error, tokenize.TokenError, zlib.error, TiffFileError,
)  # fmt: skip
"""What Pillow, tifffile, imagecodecs and numpy raise on damaged files, by their own account and by fuzzing them."""


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises on the file at ``path`` into an InputError, one line that names the file."""
    try:
        with warnings.catch_warnings():  # of odd metadata; what makes the pixels doubtful raises
            warnings.simplefilter("ignore")
            yield
    except InputError as error:
        line = str(error)
        raise InputError(line if line.startswith(f"{path}: ") else f"{path}: {line}") from error
    except MemoryError as error:
        raise InputError(f"{path}: too large for this machine's memory") from error
    except PermissionError as error:
        raise InputError(f"{path}: may not be read ({error.strerror}); ask for leave to read it, or copy it") from error
    except _DECODER_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: damaged or cut short ({reason}); save or copy it again") from error
