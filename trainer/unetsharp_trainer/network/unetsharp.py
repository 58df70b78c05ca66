"""U-Net#: the network whole."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unetsharp_engines.contract import CLASSES, SIDE_MULTIPLE
from unetsharp_engines.errors import InputError
from unetsharp_trainer.network.aspp import ASPP
from unetsharp_trainer.network.blocks import upsample
from unetsharp_trainer.network.decoder import BRANCHES, Decoder
from unetsharp_trainer.network.encoder import build_encoder

__all__ = ["UNetSharp"]

SILENT = -20.0
"""Logit of a class that a network never says: a probability of 2e-9 beside a logit of 0."""

_NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)


class UNetSharp(nn.Module):
    """Full-scale U-Net with gated skips and an ASPP bridge; ``UNetSharp()`` is the paper's configuration.

    ``encoder`` is any timm ``features_only`` backbone with reductions 2, 4, 8, 16, 32. ``width`` is the branch width
    c; decoder nodes have 5c channels. ``encoder_weights`` is ``"none"`` (random), ``"timm"`` (downloaded) or a file,
    safetensors or torch; what matched is then in ``encoder_report``.

    Raises InputError for an encoder, width or file that will not do, MissingCapabilityError where ``"timm"`` cannot
    download.
    """

    def __init__(
        self,
        encoder: str = "resnext101_32x4d",
        width: int = 64,
        encoder_weights: Literal["none", "timm"] | Path = "none",
    ) -> None:
        super().__init__()
        if width < 1:
            raise InputError(f"width is {width}; it must be at least 1 (the paper's is 64)")
        self.encoder_name = encoder
        self.width = width
        self.encoder, self.encoder_report = build_encoder(encoder, encoder_weights)
        channels: list[int] = self.encoder.feature_info.channels()
        self.aspp = ASPP(channels[-1], width)
        self.decoder = Decoder(channels[:-1], width)
        self.head = nn.Conv2d(BRANCHES * width, len(CLASSES), 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Segment float RGB [N, 3, H, W] in 0..1: float logits [N, 6, H, W], before the softmax.

        Raises InputError where a side is no multiple of 32, naming the size to pad to.
        """
        _require_whole_strides(image.shape[-2], image.shape[-1])
        return self.logits(image)

    def logits(self, image: Tensor) -> Tensor:
        """`forward` without its check of the sides: what exporters trace, since a trace cannot hold a check."""
        *encoded, deepest = self.encoder(image)
        finest = self.decoder(encoded, self.aspp(deepest))
        logits: Tensor = self.head(upsample(finest, 2))
        return logits

    def silence_pooling(self) -> None:
        """Fix the ASPP's global-average branch at 0: nothing then averages over the whole window.

        Its norm's scale and shift become 0 and are not trained. The network's form and its file stay what they are.
        """
        for module in self.aspp.pooled.modules():
            if isinstance(module, _NORMS):
                for parameter in module.requires_grad_(False).parameters():
                    parameter.zero_()

    def silence_classes(self, channels: Sequence[int]) -> None:
        """Fix the logits of ``channels`` at `SILENT`, for classes that the training data never shows.

        Nothing speaks against such a class where a nucleus's class is unknown: left free, it becomes the name for
        whatever nucleus nobody has classed. Its weights are 0 and get no gradient.
        """
        for parameter, value in zip(self.head.parameters(), (0.0, SILENT), strict=True):
            hold = partial(_hold, parameter, list(channels), value)
            hold(torch.zeros_like(parameter))
            parameter.register_hook(hold)  # type: ignore[no-untyped-call]

    def freeze_encoder(self) -> None:
        """Take the whole encoder out of training: the paper's first five epochs."""
        self.encoder.requires_grad_(False)

    def freeze_encoder_norm_affine(self) -> None:
        """Train all of the encoder but its norms' scales and shifts: the paper's epochs from the sixth on.

        Running statistics are another matter: they follow the modules' train/eval mode, which is the training loop's.
        """
        self.encoder.requires_grad_(True)
        for module in self.encoder.modules():
            if isinstance(module, _NORMS):
                module.requires_grad_(False)


def _hold(parameter: nn.Parameter, channels: list[int], value: float, gradient: Tensor) -> Tensor:
    """``gradient`` without ``channels``, which get ``value`` again: weight decay moves what has no gradient, too."""
    with torch.no_grad():
        parameter[channels] = value
    gradient = gradient.clone()
    gradient[channels] = 0
    return gradient


def _require_whole_strides(height: int, width: int) -> None:
    if height % SIDE_MULTIPLE or width % SIDE_MULTIPLE:
        padded = (-(-side // SIDE_MULTIPLE) * SIDE_MULTIPLE for side in (height, width))
        raise InputError(
            f"the input is {height}×{width} pixels and sides must be multiples of {SIDE_MULTIPLE}: "
            f"pad it to {'×'.join(map(str, padded))} (height×width)"
        )
