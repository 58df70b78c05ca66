"""Additive attention gate (Oktay et al. 2018), as U-Net# puts it on every encoder branch."""

import torch
from torch import Tensor, nn

__all__ = ["AttentionGate"]


class AttentionGate(nn.Module):
    """Weighs a branch, pixel by pixel, by what the next deeper level has seen.

    ``branch`` and ``signal`` are float [N, width, H, W]; so is the result, ``branch`` times a map in 0..1.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.signal = _pointwise(width, width)
        self.branch = _pointwise(width, width)
        self.attention = _pointwise(width, 1)

    def forward(self, branch: Tensor, signal: Tensor) -> Tensor:
        """See the class."""
        seen = torch.relu(self.signal(signal) + self.branch(branch))
        return branch * torch.sigmoid(self.attention(seen))


def _pointwise(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1), nn.BatchNorm2d(out_channels))
