"""The two operations that ASPP and decoder are made of."""

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ConvMishNorm", "upsample"]


class ConvMishNorm(nn.Sequential):
    """Conv → Mish → BatchNorm at unchanged height and width: the paper's block, in this order.

    float [N, in_channels, H, W] → float [N, out_channels, H, W].
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 3, *, dilation: int = 1, bias: bool = True
    ) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=bias),
            nn.Mish(),
            nn.BatchNorm2d(out_channels),
        )


def upsample(x: Tensor, factor: int) -> Tensor:
    """Bilinear by an integer factor, half-pixel centres: float [N, C, H, W] → [N, C, H·factor, W·factor]."""
    return F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)
