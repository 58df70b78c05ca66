"""The contract: what every part of unetsharp agrees on. The only place where these facts are written.

Classes follow PanNuke (Gamper et al. 2020): its mask channels are, in order, neoplastic, inflammatory, connective,
dead, epithelial, background, and so are the network's output channels. Label images hold ``label`` values instead
(background 0, nuclei 1 to 5), as QuPath, scikit-image and HoVer-Net's type maps expect zero to mean "nothing here":
``label = (channel + 1) % 6``.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "BACKGROUND",
    "BYTES_TO_UNIT",
    "CLASSES",
    "DEAD_VARIANCE",
    "INPUT_NAME",
    "LABEL_OF_CHANNEL",
    "MAX_SIDE",
    "MPP",
    "NUCLEUS_CLASSES",
    "OUTPUT_NAME",
    "SIDE_MULTIPLE",
    "TAPS",
    "TAPS_NAME",
    "TILE",
    "TissueClass",
    "class_named",
]


@dataclass(frozen=True, kw_only=True)
class TissueClass:
    """One output channel of the network."""

    channel: int
    """Index in the network's logits and in PanNuke's masks."""
    label: int
    """Value in label images; 0 is background."""
    name: str
    color: tuple[int, int, int]
    """RGB, 0 to 255: the colours PanNuke and HoVer-Net draw the classes in."""


CLASSES: tuple[TissueClass, ...] = (
    TissueClass(channel=0, label=1, name="Neoplastic", color=(255, 0, 0)),
    TissueClass(channel=1, label=2, name="Inflammatory", color=(0, 255, 0)),
    TissueClass(channel=2, label=3, name="Connective", color=(0, 0, 255)),
    TissueClass(channel=3, label=4, name="Dead", color=(255, 255, 0)),
    TissueClass(channel=4, label=5, name="Epithelial", color=(255, 165, 0)),
    TissueClass(channel=5, label=0, name="Background", color=(0, 0, 0)),
)
"""All six, by channel."""

NUCLEUS_CLASSES: tuple[TissueClass, ...] = CLASSES[:5]
BACKGROUND: TissueClass = CLASSES[5]

LABEL_OF_CHANNEL: npt.NDArray[np.uint8] = np.array([c.label for c in CLASSES], dtype=np.uint8)
"""``LABEL_OF_CHANNEL[logits.argmax(channel axis)]`` is the label image."""

MPP: float = 0.25
"""Resolution the network was trained at, in µm per pixel (PanNuke, 40×)."""

TILE: int = 256
"""Side of the square tiles that runtimes are fed, in pixels at `MPP`: PanNuke's patch size."""

SIDE_MULTIPLE: int = 32
"""The encoder's last level has stride 32: every input side is a multiple of this."""

MAX_SIDE: int = 384
"""Largest input side, in pixels. Beyond it the off-centre taps of the ASPP's dilated convolutions, which never saw a
gradient at training sizes up to 384, would act, and global pooling would see more than it was trained on."""

INPUT_NAME: str = "image"
"""ONNX input: float32 [N, 3, H, W], RGB, 0 to 1 (uint8 level / 255; no ImageNet mean and std, as the paper's code)."""

OUTPUT_NAME: str = "logits"
"""ONNX output: float32 [N, 6, H, W], before the softmax, channels as `CLASSES`."""

TAPS_NAME: str = "head_taps"
"""A tail-less network's output, in place of `OUTPUT_NAME`: float32 [N, `rewrites.HeadTail.channels`, H / factor,
W / factor]."""

TAPS: int = 9
"""Its channels per class: channel = 9·class + 3·column + row, column and row in 0..2 for shifts -1, 0, 1."""

BYTES_TO_UNIT: float = 1.0 / 255.0
"""Input normalization: stain-normalized uint8 level → network input."""

DEAD_VARIANCE: float = 1e-12
"""A channel whose running variance is below this never moved in training: its BatchNorm gives its shift, within 3e-4
standard deviations (for the usual epsilon of 1e-5). In float16 the same BatchNorm would amplify its input's rounding
300-fold; it was seen to cost 14% of the output."""


def class_named(name: str) -> TissueClass:
    """The class called ``name`` (any case). Raises KeyError for a name that is none of the six."""
    for tissue_class in CLASSES:
        if tissue_class.name.lower() == name.lower():
            return tissue_class
    raise KeyError(name)
