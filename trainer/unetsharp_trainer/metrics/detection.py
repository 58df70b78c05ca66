"""Nuclei found, missed and invented, whatever their outlines: detection F1, and F1 per class.

As HoVer-Net's evaluation does it (Graham et al. 2019; github.com/vqdang/hover_net ``compute_stats.py``), and PanNuke's
baselines with it: in each image true and predicted centroids are paired one to one so that the sum of distances is
least; pairs farther apart than 12 px at 0.25 µm/px (3 µm) are undone. All images are one pool.

With TPc pairs of class c on both sides, FPc pairs where only the prediction is c, FNc pairs where only the truth is c,
and FPd, FNd unpaired predicted and true nuclei of class c:

    detection   F = 2·TP / (2·TP + FP + FN)                                  over pairs of any class
    class c     F = 2·TPc / (2·TPc + 2·FPc + 2·FNc + FPd + FNd)              a wrong class weighs as much as two misses
                P = TPc / (TPc + 2·FPc + FPd),   R = TPc / (TPc + 2·FNc + FNd)

Precision and recall per class are those of Gamper et al. 2020; F is their harmonic mean. HoVer-Net puts a nucleus of
class 0 at (0, 0) into images that have none; here such images add nothing.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from unetsharp_engines.contract import MPP, NUCLEUS_CLASSES
from unetsharp_trainer.metrics.means import ratio

__all__ = ["RADIUS_UM", "DetectionMatrix", "pair_up"]

RADIUS_UM = 3.0
"""Centroids farther apart than this are different nuclei."""
_RADIUS = RADIUS_UM / MPP  # 12 px
_NONE = len(NUCLEUS_CLASSES)

Centroids = npt.NDArray[np.float64]
Classes = npt.NDArray[np.integer]
Scores = npt.NDArray[np.float64]


@dataclass(eq=False)
class DetectionMatrix:
    """Nuclei counted by true and predicted class. Add image after image; merge two with ``+``."""

    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((_NONE + 1, _NONE + 1), dtype=np.int64))
    """int64 [6, 6]: ``counts[true, predicted]``; index 5 is "no nucleus": last column missed, last row invented."""

    def add(self, true_centroids: Centroids, true_classes: Classes, centroids: Centroids, classes: Classes) -> None:
        """Count one image: centroids (row, column) in pixels at 0.25 µm/px, [n, 2]; classes 0 to 4, [n]."""
        true, predicted = pair_up(true_centroids, centroids)
        missed, invented = np.delete(true_classes, true), np.delete(classes, predicted)
        rows = np.concatenate([true_classes[true], missed, np.full(len(invented), _NONE)])
        columns = np.concatenate([classes[predicted], np.full(len(missed), _NONE), invented])
        cells = np.bincount(rows.astype(np.intp) * (_NONE + 1) + columns, minlength=self.counts.size)
        self.counts = self.counts + cells.reshape(self.counts.shape)

    def __add__(self, other: "DetectionMatrix") -> "DetectionMatrix":
        return DetectionMatrix(self.counts + other.counts)

    @property
    def true_nuclei(self) -> npt.NDArray[np.int64]:
        """Nuclei of each class in the truth, int64 [5]."""
        return np.asarray(self.counts[:_NONE].sum(axis=1))

    @property
    def predicted_nuclei(self) -> npt.NDArray[np.int64]:
        """Nuclei predicted of each class, int64 [5]."""
        return np.asarray(self.counts[:, :_NONE].sum(axis=0))

    def precision(self) -> float:
        """Share of the predicted nuclei that are there, whatever the class; NaN where none is predicted."""
        return float(ratio(self._paired(), self.predicted_nuclei.sum()))

    def recall(self) -> float:
        """Share of the true nuclei that are found, whatever the class; NaN where there is none."""
        return float(ratio(self._paired(), self.true_nuclei.sum()))

    def f1(self) -> float:
        """Detection F1; NaN where neither side has a nucleus."""
        return float(ratio(2 * self._paired(), self.true_nuclei.sum() + self.predicted_nuclei.sum()))

    def class_accuracy(self) -> float:
        """Share of the paired nuclei that have the right class; NaN where none is paired."""
        return float(ratio(self._right().sum(), self._paired()))

    def class_precision(self) -> Scores:
        """Precision of each class as the module says, float64 [5]; NaN where it is never predicted."""
        return ratio(self._right(), self._right() + self._wrongly_given())

    def class_recall(self) -> Scores:
        """Recall of each class as the module says, float64 [5]; NaN where the truth lacks it."""
        return ratio(self._right(), self._right() + self._not_given())

    def class_f1(self) -> Scores:
        """F1 of each class as the module says, float64 [5]; NaN where it is neither in the truth nor predicted."""
        right = self._right()
        return ratio(2 * right, 2 * right + self._wrongly_given() + self._not_given())

    def _paired(self) -> npt.NDArray[np.int64]:
        return np.asarray(self.counts[:_NONE, :_NONE].sum())

    def _right(self) -> npt.NDArray[np.int64]:
        return self.counts.diagonal()[:_NONE]

    def _wrongly_given(self) -> npt.NDArray[np.int64]:
        """2·FPc + FPd."""
        invented = self.counts[_NONE, :_NONE]
        return 2 * (self.predicted_nuclei - self._right() - invented) + invented

    def _not_given(self) -> npt.NDArray[np.int64]:
        """2·FNc + FNd."""
        missed = self.counts[:_NONE, _NONE]
        return 2 * (self.true_nuclei - self._right() - missed) + missed


def pair_up(
    true_centroids: Centroids, centroids: Centroids, radius: float = _RADIUS
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Indices of the paired true and predicted nuclei, [k] each; centroids are [n, 2], ``radius`` in their unit."""
    from scipy.optimize import linear_sum_assignment

    distances = np.linalg.norm(true_centroids[:, None] - centroids[None], axis=-1)
    true, predicted = linear_sum_assignment(distances)
    near = distances[true, predicted] <= radius
    return true[near], predicted[near]
