"""Exact rewrites of an exported network: the same function of its input, for less arithmetic and fewer bytes."""

from unetsharp_engines.rewrites.manager import REWRITES_KEY, PassReport, RewriteReport, rewrite
from unetsharp_engines.rewrites.passes import DEFAULT, NEEDING_PLUGIN, PASSES, PORTABLE, TAIL_LESS, TYPED
from unetsharp_engines.rewrites.tail import TAIL_KEY, HeadTail, finish
from unetsharp_engines.rewrites.tuning import finished, tuned

__all__ = [
    "DEFAULT",
    "NEEDING_PLUGIN",
    "PASSES",
    "PORTABLE",
    "REWRITES_KEY",
    "TAIL_KEY",
    "TAIL_LESS",
    "TYPED",
    "HeadTail",
    "PassReport",
    "RewriteReport",
    "finish",
    "finished",
    "rewrite",
    "tuned",
]
