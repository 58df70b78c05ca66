"""What each kernel must give, in numpy float64: assembled from the CPU path itself, so that there is one truth."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from unetsharp_engines.contract import BYTES_TO_UNIT, CLASSES, LABEL_OF_CHANNEL, TAPS
from unetsharp_engines.rewrites.tail import HeadTail
from unetsharp_engines.rewrites.tail import finish as logits_of_taps
from unetsharp_engines.stain import StainEstimate, StainStatus, StainTransform
from unetsharp_engines.stain import estimate as estimate_pixels

__all__ = ["apply", "confidences", "cropped", "deep", "estimate", "labels", "logits", "probabilities"]


def estimate(groups: npt.NDArray[np.uint8], fallback: StainTransform) -> tuple[list[StainTransform], list[StainStatus]]:
    """Of `Kernels.estimate`: each group's transform, ``fallback`` where it carries no estimate, and its status."""
    found: list[StainEstimate] = [estimate_pixels(pixels) for pixels in groups]
    return [e.transform if e.status is StainStatus.OK else fallback for e in found], [e.status for e in found]


def apply(tiles_NHWC: npt.NDArray[np.uint8], transforms: Sequence[StainTransform]) -> npt.NDArray[np.float64]:
    """Of `Kernels.apply`: [N, 3, H, W], whole levels / 255, tile by tile."""
    levels = np.stack([transform.apply(tile) for tile, transform in zip(tiles_NHWC, transforms, strict=True)])
    return np.asarray(levels.transpose(0, 3, 1, 2) * BYTES_TO_UNIT)


def logits(taps_NCHW: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """What the finish kernels compute on the way: [N, 6, 2·h, 2·w] from taps [N, channels, h, w]."""
    tail = HeadTail(classes=len(CLASSES), factor=2, channels=taps_NCHW.shape[1])
    return np.asarray(logits_of_taps(taps_NCHW.astype(np.float64), tail), dtype=np.float64)


def labels(logits_NCHW: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Of `Kernels.finish` and `Kernels.labels_of_logits`, before the margin is cut: uint8 [N, H, W]."""
    return np.asarray(LABEL_OF_CHANNEL[logits_NCHW.argmax(axis=1)])


def probabilities(logits_NCHW: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of the probabilities kernels: the softmax, [N, 6, H, W]."""
    exponentials = np.exp(logits_NCHW - logits_NCHW.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def confidences(logits_NCHW: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of the labels kernels: the greatest probability, 0 to 255 before rounding, [N, H, W]."""
    return np.asarray(255.0 * probabilities(logits_NCHW).max(axis=1))


def deep(
    taps_NCHW: npt.NDArray[Any], scale: npt.NDArray[Any], shift: npt.NDArray[Any], factor: int
) -> npt.NDArray[np.float64]:
    """Of `deep.DeepKernels.run`: [N, C, h·factor, w·factor] from tap-major taps [N, 9·C, h, w], scale and shift [C]."""
    n, channels, h, w = taps_NCHW.shape
    outputs = channels // TAPS
    of_each = taps_NCHW.astype(np.float64).reshape(n, TAPS, outputs, h, w).swapaxes(1, 2).reshape(taps_NCHW.shape)
    x = logits_of_taps(of_each, HeadTail(classes=outputs, factor=factor, channels=channels))
    with np.errstate(over="ignore"):  # of softplus: log(1 + exp x) is x there
        mish = x * np.tanh(np.logaddexp(0.0, x))
    return np.asarray(mish * scale[:, None, None] + shift[:, None, None], dtype=np.float64)


def cropped(image_NHW: npt.NDArray[Any], margin: int) -> npt.NDArray[Any]:
    """Without ``margin`` pixels on each side."""
    height, width = image_NHW.shape[1:]
    kept: npt.NDArray[Any] = image_NHW[:, margin : height - margin, margin : width - margin]
    return kept
