"""PanNuke's panoptic quality: bPQ and mPQ per tissue, as its official script computes them.

Kirillov et al. 2019, "Panoptic segmentation"; Gamper et al. 2020, "PanNuke dataset extension, insights and baselines";
the official script is github.com/TissueImageAnalytics/PanNuke-metrics. A true and a predicted nucleus match when
their IoU exceeds 0.5, so each matches one at most. With the matches' IoUs u, and FP and FN unmatched nuclei:
``PQ = Σu / TP · TP / (TP + FP/2 + FN/2)``, per image and class. Then means: over the classes of an image (mPQ; all
nuclei as one class for bPQ), over the images of a tissue, over tissues.

What that definition does, and a reader of the numbers should know:

- An image whose truth lacks a class has no PQ for it. Nuclei that a network invents there cost mPQ nothing; they
  cost bPQ only if the image has some nucleus.
- Images and tissues weigh alike, however many nuclei they hold: one rare nucleus found or missed is a PQ of 1 or 0.
- The official script adds 1e-6 to TP in Σu / TP, so one perfect nucleus scores 0.999999. Kept, for equal numbers.

Where the official script fails, this does what it means: maps without a single background pixel (it raises
ValueError), and nuclei wholly hidden under another class's (bPQ: it raises IndexError; here they are not there).
Its ``class_stats.csv`` repeats the connective PQ in the inflammatory row, and only the 19 tissue names it knows enter
its averages; here every tissue does.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from unetsharp_engines.contract import NUCLEUS_CLASSES
from unetsharp_trainer.metrics.instances import merged
from unetsharp_trainer.metrics.means import mean_of_defined

__all__ = ["PanopticTable", "TissueQuality", "panoptic_quality"]

MATCH_IOU = 0.5
_OFFICIAL_EPSILON = 1e-6

Map = npt.NDArray[np.integer]


def panoptic_quality(truth: Map, predicted: Map) -> float:
    """PQ of one image and one class, 0 to 1; NaN where ``truth`` has no nucleus.

    Both are instance maps [H, W] of ids below 2³¹, 0 where there is no nucleus; ids need not be contiguous. Raises
    ValueError where the shapes differ.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"truth is {list(truth.shape)}, predicted {list(predicted.shape)}; they must be alike")
    ious, true_nuclei, predicted_nuclei = _overlaps(truth, predicted)
    if not true_nuclei:
        return float("nan")
    matches = ious[ious > MATCH_IOU]
    detection = 2 * len(matches) / (true_nuclei + predicted_nuclei)
    segmentation = matches.sum() / (len(matches) + _OFFICIAL_EPSILON)
    return float(detection * segmentation)


@dataclass(frozen=True, kw_only=True)
class TissueQuality:
    """One row of the table."""

    tissue: str
    images: int
    mpq: float
    """NaN where no image has a nucleus."""
    bpq: float


@dataclass
class PanopticTable:
    """Image after image becomes the per-tissue table. Tables merge with ``+``."""

    tissues: list[str] = field(default_factory=list)
    """Tissue of each image."""
    binary: list[float] = field(default_factory=list)
    """PQ of each image with all nuclei as one class; NaN where the truth has none."""
    by_class: list[list[float]] = field(default_factory=list)
    """PQ of each image for the five nucleus classes; NaN where the truth lacks the class."""

    def add(self, tissue: str, truth_HWC: Map, predicted_HWC: Map) -> None:
        """Judge one image. Both are [H, W, 5]: ids of the nuclei of each class, 0 elsewhere (PanNuke's masks)."""
        self.tissues.append(tissue)
        self.binary.append(panoptic_quality(merged(truth_HWC), merged(predicted_HWC)))
        classes = range(len(NUCLEUS_CLASSES))
        self.by_class.append([panoptic_quality(truth_HWC[..., c], predicted_HWC[..., c]) for c in classes])

    def __add__(self, other: "PanopticTable") -> "PanopticTable":
        return PanopticTable(self.tissues + other.tissues, self.binary + other.binary, self.by_class + other.by_class)

    def class_pq(self) -> npt.NDArray[np.float64]:
        """PQ of each nucleus class, mean over the images whose truth has it, whatever the tissue: float64 [5]."""
        scores = np.array(self.by_class, dtype=np.float64).reshape(-1, len(NUCLEUS_CLASSES))
        return np.array([mean_of_defined(column) for column in scores.T])

    def by_tissue(self) -> list[TissueQuality]:
        """The table's rows, tissues in alphabetical order."""
        return [self._row(tissue) for tissue in sorted(set(self.tissues))]

    def mpq(self) -> float:
        """Mean over the tissues of `TissueQuality.mpq`: PanNuke's mPQ. NaN where no image has a nucleus."""
        return mean_of_defined(np.array([row.mpq for row in self.by_tissue()]))

    def bpq(self) -> float:
        """Mean over the tissues of `TissueQuality.bpq`: PanNuke's bPQ. NaN where no image has a nucleus."""
        return mean_of_defined(np.array([row.bpq for row in self.by_tissue()]))

    def _row(self, tissue: str) -> TissueQuality:
        images = [image for image, name in enumerate(self.tissues) if name == tissue]
        mpqs = np.array([mean_of_defined(np.array(self.by_class[image])) for image in images])
        bpqs = np.array([self.binary[image] for image in images])
        return TissueQuality(tissue=tissue, images=len(images), mpq=mean_of_defined(mpqs), bpq=mean_of_defined(bpqs))


def _overlaps(truth: Map, predicted: Map) -> tuple[npt.NDArray[np.float64], int, int]:
    """IoU of every pair that overlaps, and the numbers of true and of predicted nuclei.

    Each pixel's two ids make one number, so a single sort finds all pairs and their pixels.
    """
    stride = int(predicted.max(initial=0)) + 1
    keys = truth.astype(np.int64) * stride + predicted
    pairs, shared = np.unique(keys[keys > 0], return_counts=True)
    true_ids, true = np.unique(pairs // stride, return_inverse=True)
    predicted_ids, guess = np.unique(pairs % stride, return_inverse=True)
    area = np.bincount(true, weights=shared)[true] + np.bincount(guess, weights=shared)[guess]
    both = (true_ids[true] > 0) & (predicted_ids[guess] > 0)
    ious = shared[both] / (area[both] - shared[both])
    return ious, int(np.count_nonzero(true_ids)), int(np.count_nonzero(predicted_ids))
