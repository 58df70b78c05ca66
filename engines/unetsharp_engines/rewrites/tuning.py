"""Rewrites for one runtime: applied when ONNX Runtime loads an exported network, or an engine is built from it."""

import onnx

from unetsharp_engines.rewrites.manager import REWRITES_KEY, rewrite
from unetsharp_engines.rewrites.passes import DEFAULT, TYPED

__all__ = ["finished", "tuned"]


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
