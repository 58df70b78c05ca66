"""Grouped convolutions with fewer, wider groups."""

from dataclasses import replace

import numpy as np

from unetsharp_engines.rewrites.convolution import Convolution
from unetsharp_engines.rewrites.graph import Graph, name_of
from unetsharp_engines.rewrites.outcome import Outcome

__all__ = ["widen_groups"]


def widen_groups(graph: Graph, *, channels: int) -> Outcome:
    """Join groups of a convolution until each has ``channels`` input channels, as tensor cores like them.

    Exact: output o of group k reads the input channels of that group. In the joined group it reads those of the others
    as well, with weights of zero. It costs arithmetic, which reads no more bytes but for the weights.
    """
    sites = []
    for node in graph.nodes:
        conv = Convolution.read(graph, node)
        joined = 1 if conv is None else _joined(conv, channels)
        if conv is not None and joined > 1:
            replace(conv, weight=_block_diagonal(conv, joined), group=conv.group // joined).write(graph)
            sites.append(name_of(node))
    note = "" if sites else f"no convolution has groups of fewer than {channels} channels"
    return Outcome(sites=tuple(sites), note=note)


def _joined(conv: Convolution, channels: int) -> int:
    """How many groups become one; 1 where the groups are wide enough or do not come out even."""
    wanted = min(channels // conv.weight.shape[1], conv.group)
    return wanted if wanted > 1 and conv.group % wanted == 0 else 1


def _block_diagonal(conv: Convolution, joined: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Weights [O, joined · I, kh, kw]: each output's own where its group stands among the joined, zeros elsewhere."""
    outputs, inputs, *kernel = conv.weight.shape
    wide = np.zeros((outputs, joined * inputs, *kernel))
    per_group = outputs // conv.group
    for output in range(outputs):
        start = output // per_group % joined * inputs
        wide[output, start : start + inputs] = conv.weight[output]
    return wide
