"""Pixels counted by true and predicted class, and the Dice and IoU that follow from the counts.

For a class with TP pixels right, FP predicted elsewhere and FN missed: ``Dice = 2·TP / (2·TP + FP + FN)`` and
``IoU = TP / (TP + FP + FN)``, over all pixels added, not averaged over images. A class that nobody sees has no score
(`Presence`).

Two averages without background go by the same name in papers, so each has its own here:

- *pooled*: TP, FP and FN are summed over the five nucleus classes before the one division (micro-average). Common
  classes dominate. U-Net#'s paper reports it: IoU 0.5593 and Dice 0.7174 obey ``Dice = 2·IoU / (1 + IoU)``, which
  holds for one pool of counts and not for a mean of class scores.
- *class mean*: the mean of the classes' scores (macro-average). From the same table's Dice 0.7767, 0.6343, 0.5828, 0
  and 0.7096 it is 0.541, and IoU 0.412.
"""

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import numpy.typing as npt

from unetsharp_engines.contract import BACKGROUND, CLASSES
from unetsharp_trainer.data.pannuke import UNKNOWN
from unetsharp_trainer.metrics.means import mean_of_defined, ratio

__all__ = ["ConfusionMatrix", "Presence", "presence_of"]

Counts = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]

_N = len(CLASSES)
_NUCLEI = slice(0, BACKGROUND.channel)


class Presence(Enum):
    """What the score of a class rests on."""

    PRESENT = "present"
    """It is in the truth."""
    PREDICTED_ONLY = "predicted only"
    """It is not in the truth, yet predicted: Dice and IoU are 0, all of it is wrong."""
    ABSENT = "absent"
    """Neither in the truth nor predicted: Dice and IoU are NaN, and averages leave the class out."""


@dataclass(eq=False)
class ConfusionMatrix:
    """Pixel counts. Add batches to it, merge two with ``+``; both orders give the same.

    Pixels of a nucleus of unknown class (target 255, `UNKNOWN`) enter no class score; they are counted apart, for
    `foreground_dice` and `foreground_iou`.
    """

    counts: Counts = field(default_factory=lambda: np.zeros((_N, _N), dtype=np.int64))
    """int64 [6, 6]: ``counts[true channel, predicted channel]``."""
    unknown: Counts = field(default_factory=lambda: np.zeros(_N, dtype=np.int64))
    """int64 [6]: pixels on nuclei of unknown class, by predicted channel."""

    def add(self, target: npt.NDArray[np.integer], predicted: npt.NDArray[np.integer]) -> None:
        """Count pixels of two integer arrays of one shape, any shape.

        ``target`` holds channels 0 to 5 or `UNKNOWN`, ``predicted`` channels 0 to 5. Raises ValueError for other
        values, shapes that differ, or arrays that are not of integers.
        """
        _check(target, predicted)
        rows = np.where(target == UNKNOWN, _N, target).astype(np.intp)
        pairs = np.bincount((rows * _N + predicted).ravel(), minlength=(_N + 1) * _N).reshape(_N + 1, _N)
        self.counts = self.counts + pairs[:_N]
        self.unknown = self.unknown + pairs[_N]

    def __add__(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        return ConfusionMatrix(self.counts + other.counts, self.unknown + other.unknown)

    @property
    def true_pixels(self) -> Counts:
        """Pixels of each class in the truth, int64 [6]."""
        return np.asarray(self.counts.sum(axis=1))

    @property
    def predicted_pixels(self) -> Counts:
        """Pixels predicted as each class where the truth is known, int64 [6]."""
        return np.asarray(self.counts.sum(axis=0))

    @property
    def presence(self) -> tuple[Presence, ...]:
        """What each class's score rests on, by channel."""
        return tuple(map(presence_of, self.true_pixels.tolist(), self.predicted_pixels.tolist()))

    def dice(self) -> Scores:
        """Dice of each class, background last, float64 [6]; NaN where the class is absent."""
        return ratio(2 * self.counts.diagonal(), self.true_pixels + self.predicted_pixels)

    def iou(self) -> Scores:
        """IoU (Jaccard index) of each class, background last, float64 [6]; NaN where the class is absent."""
        right = self.counts.diagonal()
        return ratio(right, self.true_pixels + self.predicted_pixels - right)

    def pooled_dice(self) -> float:
        """Dice of the five nucleus classes as one pool of pixels; the paper's 0.7174. NaN where all are absent."""
        right, sizes = self._pool()
        return float(ratio(2 * right, sizes))

    def pooled_iou(self) -> float:
        """IoU of the five nucleus classes as one pool of pixels; the paper's 0.5593. NaN where all are absent."""
        right, sizes = self._pool()
        return float(ratio(right, sizes - right))

    def class_mean_dice(self) -> float:
        """Mean Dice of the nucleus classes that are not absent; NaN where all are."""
        return mean_of_defined(self.dice()[_NUCLEI])

    def class_mean_iou(self) -> float:
        """Mean IoU of the nucleus classes that are not absent; NaN where all are."""
        return mean_of_defined(self.iou()[_NUCLEI])

    def foreground_dice(self, *, unknown_is_nucleus: bool = True) -> float:
        """Dice of nucleus against background, whatever the class; NaN where neither has a nucleus.

        Nuclei of unknown class are nuclei here; with ``unknown_is_nucleus=False`` their pixels are left out.
        """
        right, sizes = self._foreground(unknown_is_nucleus)
        return float(ratio(2 * right, sizes))

    def foreground_iou(self, *, unknown_is_nucleus: bool = True) -> float:
        """IoU of nucleus against background; else as `foreground_dice`."""
        right, sizes = self._foreground(unknown_is_nucleus)
        return float(ratio(right, sizes - right))

    def _pool(self) -> tuple[Counts, Counts]:
        """True positives, and true plus predicted pixels, summed over the nucleus classes."""
        sizes = self.true_pixels + self.predicted_pixels
        return self.counts.diagonal()[_NUCLEI].sum(), sizes[_NUCLEI].sum()

    def _foreground(self, unknown_is_nucleus: bool) -> tuple[Counts, Counts]:
        """The same of one class "nucleus"."""
        nuclei = self.counts[_NUCLEI].sum(axis=0) + (self.unknown if unknown_is_nucleus else 0)
        predicted = nuclei[_NUCLEI].sum() + self.counts[BACKGROUND.channel, _NUCLEI].sum()
        return nuclei[_NUCLEI].sum(), nuclei.sum() + predicted


def _check(target: npt.NDArray[np.integer], predicted: npt.NDArray[np.integer]) -> None:
    if target.shape != predicted.shape:
        raise ValueError(f"target is {list(target.shape)}, predicted {list(predicted.shape)}; they must be alike")
    if target.dtype.kind not in "iu" or predicted.dtype.kind not in "iu":
        raise ValueError(f"target is {target.dtype}, predicted {predicted.dtype}; both must be integer channels")
    if not _channels(target[target != UNKNOWN]):
        raise ValueError(f"target has values {np.unique(target)[:9].tolist()}; 0 to {_N - 1} or {UNKNOWN} would do")
    if not _channels(predicted):
        raise ValueError(f"predicted has values {np.unique(predicted)[:9].tolist()}; 0 to {_N - 1} would do")


def _channels(values: npt.NDArray[np.integer]) -> bool:
    return values.size == 0 or (int(values.min()) >= 0 and int(values.max()) < _N)


def presence_of(true: int, predicted: int) -> Presence:
    """Presence of a class that the truth has ``true`` times and the prediction ``predicted`` times."""
    if true:
        return Presence.PRESENT
    return Presence.PREDICTED_ONLY if predicted else Presence.ABSENT
