"""Rewrites for one runtime: applied when ONNX Runtime loads an exported network, or an engine is built from it."""

import onnx

from unetsharp_engines.rewrites.manager import REWRITES_KEY, rewrite
from unetsharp_engines.rewrites.passes import DEFAULT, TYPED

__all__ = ["finished", "tuned", "tuned_for"]


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
    rewritten = tuned(runtime, model)
    return content if rewritten is model else bytes(rewritten.SerializeToString())


def tuned(runtime: str, model: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 network with the rewrites that suit ``runtime``, those of `DEFAULT`.

    ``model`` itself unless it was exported with rewrites.
    """
    return rewrite(model, DEFAULT[runtime])[0] if _was_rewritten(model) else model


def finished(runtime: str, model: onnx.ModelProto) -> onnx.ModelProto:
    """The network that an engine for ``runtime`` is built from, its tensors typed, with the rewrites of `TYPED`.

    ``model`` itself unless it was exported with rewrites.
    """
    return rewrite(model, TYPED[runtime])[0] if _was_rewritten(model) else model


def _was_rewritten(model: onnx.ModelProto) -> bool:
    return REWRITES_KEY in {p.key for p in model.metadata_props}
