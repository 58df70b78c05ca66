"""Rewrites that a runtime applies to an exported network when it loads it."""

import onnx

from unetsharp_engines.rewrites.manager import REWRITES_KEY, rewrite
from unetsharp_engines.rewrites.passes import DEFAULT

__all__ = ["tuned_for"]


def tuned_for(runtime: str, content: bytes) -> bytes:
    """An ONNX file's bytes with the rewrites that are fastest on ``runtime``, a key of `DEFAULT`.

    Only a network that was exported with rewrites is touched: one exported with ``--no-rewrite``, or not by
    unetsharp, comes back as it is, and so do bytes that are no ONNX, for the runtime to refuse.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types

    try:
        model = onnx.load_model_from_string(content)
    except DecodeError:
        return content
    if REWRITES_KEY not in {p.key for p in model.metadata_props}:
        return content
    rewritten, _ = rewrite(model, DEFAULT[runtime])
    return bytes(rewritten.SerializeToString())
