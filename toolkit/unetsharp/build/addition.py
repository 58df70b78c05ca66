"""One more engine for a bundle that is there: what may be added to it."""

import hashlib

from unetsharp.build.bundle import Bundle
from unetsharp.build.source import Source
from unetsharp_engines.errors import InputError

__all__ = ["precision_to_add"]


def precision_to_add(bundle: Bundle, source: Source, asked: str | None) -> str | None:
    """The precision for one more engine, built from ``source``: the bundle's engines', else what was ``asked`` for.

    A bundle answers alike on every GPU, but for rounding: it has one network and one precision. Raises InputError for
    another network or precision.
    """
    if hashlib.sha256(source.content).hexdigest() != bundle.manifest.onnx.sha256:
        raise InputError(
            f"{source.path}: is not the ONNX in {bundle.root}; build from {bundle.root} itself, or leave --add out to "
            "replace it"
        )
    if asked == "int8" and source.precision != "int8":
        raise InputError(f"--int8: {bundle.root} holds a {source.precision} ONNX, and INT8 is another; leave --add out")
    held = bundle.manifest.precision if bundle.manifest.engines else None
    if asked and held and asked != held:
        raise InputError(f"--{asked}: {bundle.root} holds {held} engines, and every bundle has one precision")
    return held or asked
