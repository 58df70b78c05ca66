"""JSON from strangers: one meaning or none.

Python's own reader takes the last of two equal keys, NaN, and numbers of any length; other readers take the first, or
refuse. What two readers understand differently is refused here, and so are texts that a terminal would not print.
"""

import json
import math
from typing import Any

__all__ = ["parse_object"]

_MAX_DIGITS = 18
"""Of a whole number: more than any size in bytes needs, less than 64 bits."""


def parse_object(content: bytes) -> dict[str, Any]:
    """Read one JSON object, in UTF-8. Raises ValueError or RecursionError for anything else."""
    parsed = json.loads(
        content.decode("utf-8"),
        object_pairs_hook=_without_repeats,
        parse_constant=_refuse_constant,
        parse_float=_finite,
        parse_int=_whole,
    )
    if not isinstance(parsed, dict):
        raise ValueError("no JSON object")
    _check_texts(parsed)
    return parsed


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise ValueError(f"{key!r} is given twice")
        fields[key] = value
    return fields


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large a number")
    return number


def _whole(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"{text[:_MAX_DIGITS]}… is too large a number")
    return int(text)


def _check_texts(value: object) -> None:
    """Raise ValueError for a text that is not printable: line ends, terminal commands, halves of characters."""
    if isinstance(value, str) and not value.isprintable():
        raise ValueError(f"{value[:40]!a} is no printable text")
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_texts(key)
            _check_texts(inner)
    if isinstance(value, list):
        for inner in value:
            _check_texts(inner)
