"""What is counted on each patch.

Every measure of `unetsharp.validate.measures` follows from sums and means of these over patches, so that resampling
patches a thousand times runs no network again.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from unetsharp.evaluate.run import prediction
from unetsharp_engines.contract import CLASSES, NUCLEUS_CLASSES
from unetsharp_trainer.data.pannuke import UNKNOWN, Fold
from unetsharp_trainer.metrics.confusion import ConfusionMatrix
from unetsharp_trainer.metrics.instances import by_class, centroids, judged
from unetsharp_trainer.metrics.panoptic import PanopticTable

__all__ = ["BINS", "PairTally", "Patch", "Said", "Shown", "StepTally", "compare", "count", "of_network", "read_patch"]

BINS = 15
"""Of confidence, equally wide, for the calibration error, as Guo et al. 2017 (arXiv 1706.04599) have it."""

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Patch:
    """A patch and its truth, cut to what the network takes."""

    fold: int
    index: int
    tissue: str
    image: npt.NDArray[np.uint8]
    """[h, w, 3], as scanned."""
    target: npt.NDArray[np.uint8]
    """[h, w]: channel, or `UNKNOWN`."""
    masks: Counts
    """[h, w, 5]: ids of the nuclei of each class."""
    nuclei: Counts
    """True nuclei of each class, [5]."""

    @functools.cached_property
    def sha256(self) -> str:
        """Of image and truth."""
        digest = hashlib.sha256()
        for array in (self.image, self.target, self.masks):
            digest.update(array.tobytes())
        return digest.hexdigest()


def read_patch(fold: Fold, index: int, sides: tuple[int, int]) -> Patch:
    """Patch ``index`` of ``fold``, its upper left corner of ``sides`` (height, width). Raises InputError as `Fold`."""
    view = np.s_[: sides[0], : sides[1]]
    instances = fold.instances(index)[view]
    seen = np.unique(instances[instances > 0])
    return Patch(
        fold=fold.number,
        index=index,
        tissue=fold.tissues[index],
        image=fold.image(index)[view],
        target=fold.target(index)[view],
        masks=np.asarray(fold.masks[index])[view][..., : len(NUCLEUS_CLASSES)].astype(np.int64),
        nuclei=_by_channel(fold.instance_classes(index)[seen - 1]),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Said:
    """One network on one patch."""

    pixels: ConfusionMatrix
    nuclei: Counts
    """Nuclei found of each class, [5], but for those on nuclei of unknown class."""
    bpq: float
    """Panoptic quality of all nuclei as one class; NaN where the truth has none."""
    class_pq: Floats
    """The same of each class, [5]."""
    confidence: Floats
    """[BINS, 3]: pixels of known class, the sum of their confidences, and how many of them are right."""


def count(patch: Patch, logits_CHW: npt.NDArray[np.float32]) -> Said:
    """Judge logits [6, h, w] by the truth of ``patch``. Where they are no numbers, nothing is probable."""
    from scipy.special import softmax

    with np.errstate(invalid="ignore"):  # of infinite logits
        probabilities = np.nan_to_num(softmax(logits_CHW, axis=0))
    channels = logits_CHW.argmax(axis=0).astype(np.uint8)
    pixels = ConfusionMatrix()
    pixels.add(patch.target, channels)
    found = prediction(probabilities)
    instances = judged(found.instances, patch.target == UNKNOWN)
    quality = PanopticTable()
    quality.add(patch.tissue, patch.masks, by_class(instances, found.classes))
    return Said(
        pixels=pixels,
        nuclei=_by_channel(found.classes[centroids(instances)[0] - 1]),
        bpq=quality.binary[0],
        class_pq=np.array(quality.by_class[0]),
        confidence=_confidence(probabilities, channels, patch.target),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Compared:
    """Two networks on one patch."""

    kept: Counts
    """[6, 6]: pixels by the earlier network's channel (row) and the later one's (column)."""
    signal: float
    """Sum of the earlier one's squared logits."""
    noise: float
    """Sum of the squared differences of their logits."""


def compare(earlier_CHW: npt.NDArray[np.float32], later_CHW: npt.NDArray[np.float32]) -> Compared:
    """What changed from one network's logits [6, h, w] to another's."""
    kept = ConfusionMatrix()
    kept.add(earlier_CHW.argmax(axis=0), later_CHW.argmax(axis=0))
    signal = earlier_CHW.astype(np.float64)
    noise = later_CHW - signal
    return Compared(kept=kept.counts, signal=float((signal**2).sum()), noise=float((noise**2).sum()))


@dataclass(frozen=True, eq=False, kw_only=True)
class StepTally:
    """One network on N patches: the fields of `Said`, stacked."""

    pixels: Counts
    """[N, 6, 6]."""
    unknown: Counts
    """[N, 6]."""
    nuclei: Counts
    """[N, 5]."""
    bpq: Floats
    """[N]."""
    class_pq: Floats
    """[N, 5]."""
    confidence: Floats
    """[N, BINS, 3]."""

    @classmethod
    def of(cls, said: Sequence["Said"]) -> "StepTally":
        """Stack."""
        return cls(
            pixels=np.stack([x.pixels.counts for x in said]),
            unknown=np.stack([x.pixels.unknown for x in said]),
            nuclei=np.stack([x.nuclei for x in said]),
            bpq=np.array([x.bpq for x in said]),
            class_pq=np.stack([x.class_pq for x in said]),
            confidence=np.stack([x.confidence for x in said]),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class PairTally:
    """Two networks on N patches: the fields of `Compared`, stacked."""

    kept: Counts
    """[N, 6, 6]."""
    signal: Floats
    """[N]."""
    noise: Floats
    """[N]."""

    @classmethod
    def of(cls, compared: Sequence["Compared"]) -> "PairTally":
        """Stack."""
        return cls(
            kept=np.array([x.kept for x in compared], np.int64).reshape(-1, len(CLASSES), len(CLASSES)),
            signal=np.array([x.signal for x in compared]),
            noise=np.array([x.noise for x in compared]),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Shown:
    """What K networks showed on one patch."""

    said: StepTally
    """Of each network: K in place of N."""
    against_reference: PairTally
    """Of each but the first: K - 1 in place of N."""
    against_previous: PairTally
    """The same, against the one before."""
    seconds: Floats
    """[K], from uint8 pixels to logits in main memory."""
    extremes: npt.NDArray[np.uint8]
    """Channel of each pixel by the first and by the last, [2, h, w]."""

    @property
    def changed(self) -> int:
        """Pixels given another class by the last network than by the first."""
        return int((self.extremes[0] != self.extremes[1]).sum())


_Tally = TypeVar("_Tally", StepTally, PairTally)


def of_network(tallies: Sequence[_Tally], place: int) -> _Tally:
    """The tally over patches of the network at ``place``; ``tallies`` are of all networks, patch by patch."""
    kind = type(tallies[0])
    names = [field.name for field in dataclasses.fields(kind)]
    return kind(**{name: np.stack([getattr(tally, name)[place] for tally in tallies]) for name in names})


def _confidence(
    probabilities_CHW: npt.NDArray[np.float32], channels: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8]
) -> Floats:
    known = target != UNKNOWN
    confidence = probabilities_CHW.max(axis=0)[known].astype(np.float64)
    right = (channels == target)[known]
    bins = np.clip(np.ceil(confidence * BINS).astype(np.intp) - 1, 0, BINS - 1)
    columns = (np.ones_like(confidence), confidence, right.astype(np.float64))
    return np.stack([np.bincount(bins, weights=column, minlength=BINS) for column in columns], axis=1)


def _by_channel(classes: npt.NDArray[np.integer]) -> Counts:
    return np.bincount(classes, minlength=len(NUCLEUS_CLASSES)).astype(np.int64)
