"""The patches that changed most: image, reference, deployed, difference, side by side."""

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image
from skimage.segmentation import find_boundaries

from unetsharp.validate.observing import WorstPatch
from unetsharp_engines.contract import BACKGROUND, CLASSES

__all__ = ["CHANGED_COLOR", "strip", "strip_uri"]

CHANGED_COLOR = (208, 0, 111)

_ZOOM = 2
_GAP = 16
_FILL = 0.3
"""Opacity of a class's colour inside its outline."""
_FADE = 0.75
"""How much of the difference's ground is white."""
_JPEG_QUALITY = 72
_COLORS = np.array([c.color for c in CLASSES], dtype=np.float64)


def strip_uri(worst: WorstPatch) -> str:
    """`strip` as a JPEG in a data URI, some 100 KB."""
    file = io.BytesIO()
    Image.fromarray(strip(worst)).save(file, format="JPEG", quality=_JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def strip(worst: WorstPatch) -> npt.NDArray[np.uint8]:
    """The four panels in a row, RGB, enlarged twofold, on white."""
    image = worst.patch.image
    panels = [
        _enlarged(image),
        _painted(image, worst.reference),
        _painted(image, worst.deployed),
        _difference(image, worst.reference != worst.deployed),
    ]
    gap = np.full((panels[0].shape[0], _GAP, 3), 255, np.uint8)
    return np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)


def _painted(image: npt.NDArray[np.uint8], channels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """``image`` with each class tinted and outlined in its colour."""
    wide = _repeated(channels)
    nucleus = wide != BACKGROUND.channel
    opacity = np.where(nucleus, _FILL, 0.0)
    opacity[find_boundaries(wide, mode="inner") & nucleus] = 1.0
    return _mixed(_enlarged(image), _COLORS[wide], opacity)


def _difference(image: npt.NDArray[np.uint8], changed: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """``image`` faded to grey, with ``changed`` pixels in one bright colour."""
    grey = np.asarray(Image.fromarray(_enlarged(image)).convert("L").convert("RGB"))
    faded = _mixed(grey, np.array([255.0, 255.0, 255.0]), np.full(grey.shape[:2], _FADE))
    return _mixed(faded, np.array(CHANGED_COLOR, np.float64), _repeated(changed.astype(np.uint8)).astype(np.float64))


def _mixed(
    below: npt.NDArray[np.uint8], above: npt.NDArray[np.float64], opacity: npt.NDArray[np.float64]
) -> npt.NDArray[np.uint8]:
    mixed = below * (1 - opacity[..., None]) + above * opacity[..., None]
    return np.rint(mixed).astype(np.uint8)


def _enlarged(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    height, width = image.shape[:2]
    return np.asarray(Image.fromarray(image).resize((_ZOOM * width, _ZOOM * height), Image.Resampling.BICUBIC))


def _repeated(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return values.repeat(_ZOOM, axis=0).repeat(_ZOOM, axis=1)
