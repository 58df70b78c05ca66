"""The exception tree. Every error a user can cause or meet is one of these; anything else is a bug.

UnetSharpError
├── GateFailedError          exit 1   a parity or drift gate did not hold
├── InputError               exit 2   a mistake in what was given
└── MissingCapabilityError   exit 3   something this machine lacks, and how to get it
"""

from typing import ClassVar

__all__ = ["GateFailedError", "InputError", "MissingCapabilityError", "UnetSharpError"]


class UnetSharpError(Exception):
    """Base of every expected error: one line for the user, the exit code of the command line.

    The message says what is wrong, the value seen, and the value that would do.
    """

    exit_code: ClassVar[int]


class GateFailedError(UnetSharpError):
    """A measured value missed its gate; the message names the gate, the value and the bound."""

    exit_code = 1


class InputError(UnetSharpError):
    """What the user gave cannot be used: a bad file, a bad value, a bad combination."""

    exit_code = 2


class MissingCapabilityError(UnetSharpError):
    """This machine lacks something (a package, a GPU, a driver); the message says how to get it."""

    exit_code = 3
