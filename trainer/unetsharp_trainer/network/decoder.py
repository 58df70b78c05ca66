"""The full-scale decoder: four nodes d4..d1, each fed by every encoder level above it and every level below it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetsharp_trainer.network.blocks import ConvMishNorm, upsample
from unetsharp_trainer.network.gate import AttentionGate

__all__ = ["BRANCHES", "Decoder", "DecoderNode"]

LEVELS: int = 4
"""Decoder nodes; d_n works at stride 2ⁿ."""

BRANCHES: int = LEVELS + 1
"""Branches into each node: n encoder levels, 4 − n deeper nodes, the bridge. Each has ``width`` channels."""


class DecoderNode(nn.Module):
    """Node d_n: branches from e1..en (gated), d(n+1)..d4 and the bridge, concatenated in that order, fused by a 3×3.

    The gates listen to the branch from the next deeper node, in d4 to the bridge's.
    """

    def __init__(self, level: int, encoder_channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.level = level
        self.shallow = nn.ModuleList(ConvMishNorm(channels, width) for channels in encoder_channels[:level])
        self.gates = nn.ModuleList(AttentionGate(width) for _ in range(level))
        self.deep = nn.ModuleList(ConvMishNorm(BRANCHES * width, width) for _ in range(LEVELS - level))
        self.bridge = nn.Sequential(nn.Mish(), nn.BatchNorm2d(width))
        self.fuse = ConvMishNorm(BRANCHES * width, BRANCHES * width)

    def forward(self, encoded: Sequence[Tensor], deeper: Sequence[Tensor], context: Tensor) -> Tensor:
        """Fuse e1..en (``encoded``), d(n+1)..d4 (``deeper``) and the ASPP's ``context`` of stride 32.

        Returns float [N, 5·width, H/2ⁿ, W/2ⁿ].
        """
        bridge = self.bridge(upsample(context, 2 ** (BRANCHES - self.level)))
        deep = [branch(upsample(d, 2**step)) for step, (branch, d) in enumerate(zip(self.deep, deeper, strict=True), 1)]
        signal = deep[0] if deep else bridge
        pooled = [self._pooled(e, j) for j, e in enumerate(encoded[: self.level], 1)]
        shallow = [branch(e) for branch, e in zip(self.shallow, pooled, strict=True)]
        gated = [gate(branch, signal) for gate, branch in zip(self.gates, shallow, strict=True)]
        fused: Tensor = self.fuse(torch.cat([*gated, *deep, bridge], dim=1))
        return fused

    def _pooled(self, encoded: Tensor, encoder_level: int) -> Tensor:
        """e_j at this node's scale. Sides are multiples of 32, so no window is cut and ceil_mode changes nothing."""
        factor: int = 2 ** (self.level - encoder_level)
        return F.max_pool2d(encoded, factor) if factor > 1 else encoded


class Decoder(nn.Module):
    """d4, d3, d2, d1 in turn."""

    def __init__(self, encoder_channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.nodes = nn.ModuleDict(
            {f"d{level}": DecoderNode(level, encoder_channels, width) for level in range(LEVELS, 0, -1)}
        )

    def forward(self, encoded: Sequence[Tensor], context: Tensor) -> Tensor:
        """From e1..e4 (strides 2 to 16) and the ASPP's output (stride 32) to d1: float [N, 5·width, H/2, W/2]."""
        decoded: list[Tensor] = []  # d(n+1)..d4, nearest first
        for node in self.nodes.values():
            decoded.insert(0, node(encoded, decoded, context))
        return decoded[0]
