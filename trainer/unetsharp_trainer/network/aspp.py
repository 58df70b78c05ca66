"""Atrous spatial pyramid pooling on the encoder's deepest level (Chen et al. 2017, with the paper's blocks)."""

import torch
from torch import Tensor, nn

from unetsharp_trainer.network.blocks import ConvMishNorm

__all__ = ["ASPP", "DILATIONS"]

DILATIONS: tuple[int, ...] = (6, 12, 18)
"""Of the three 3×3 branches, in pixels at stride 32."""


class ASPP(nn.Module):
    """1×1, three dilated 3×3 and a global-average branch, concatenated in that order and projected by a 1×1.

    float [N, in_channels, h, w] → float [N, width, h, w]. No convolution here has a bias. In training mode the pooled
    branch normalizes one value per picture and channel, so PyTorch refuses a batch of one.
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.point = ConvMishNorm(in_channels, width, 1, bias=False)
        self.dilated = nn.ModuleList(ConvMishNorm(in_channels, width, dilation=d, bias=False) for d in DILATIONS)
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvMishNorm(in_channels, width, 1, bias=False))
        self.project = ConvMishNorm((2 + len(DILATIONS)) * width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        point = self.point(x)
        pooled = self.pooled(x).expand_as(point)  # bilinear upsampling of a single pixel
        dilated = [branch(x) for branch in self.dilated]
        projected: Tensor = self.project(torch.cat([point, *dilated, pooled], dim=1))
        return projected
