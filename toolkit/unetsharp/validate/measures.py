"""Measures of a network, and of what one changed against another, for many weightings of the patches at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unetsharp.validate.tally import PairTally, StepTally
from unetsharp_engines.contract import CLASSES, NUCLEUS_CLASSES
from unetsharp_trainer.metrics.confusion import ConfusionMatrix
from unetsharp_trainer.metrics.means import ratio

__all__ = ["PAIR_QUANTITIES", "STEP_QUANTITIES", "Quantity", "pair_measures", "step_measures"]

Floats = npt.NDArray[np.float64]
Measures = dict[str, Floats]


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """What a measure is called."""

    key: str
    title: str
    unit: str


_SHARE = "share, 0 to 1"
_SUFFIXES = [(f"_{c.name.lower()}", f", {c.name.lower()}") for c in CLASSES]
_NUCLEUS_SUFFIXES = _SUFFIXES[: len(NUCLEUS_CLASSES)]


def _quantities(key: str, title: str, unit: str, suffixes: Sequence[tuple[str, str]]) -> list[Quantity]:
    return [Quantity(key=key + suffix, title=title + of, unit=unit) for suffix, of in suffixes]


STEP_QUANTITIES: tuple[Quantity, ...] = (
    Quantity(key="dice_foreground", title="Dice, any nucleus", unit=_SHARE),
    Quantity(key="dice_class_mean", title="Dice, mean of the nucleus classes", unit=_SHARE),
    *_quantities("dice", "Dice", _SHARE, _SUFFIXES),
    Quantity(key="iou_foreground", title="IoU, any nucleus", unit=_SHARE),
    Quantity(key="iou_class_mean", title="IoU, mean of the nucleus classes", unit=_SHARE),
    *_quantities("iou", "IoU", _SHARE, _SUFFIXES),
    Quantity(key="nuclei", title="Nuclei found", unit="nuclei"),
    *_quantities("nuclei", "Nuclei found", "nuclei", _NUCLEUS_SUFFIXES),
    Quantity(key="bpq", title="Panoptic quality, any nucleus (bPQ)", unit=_SHARE),
    Quantity(key="mpq", title="Panoptic quality, by class (mPQ)", unit=_SHARE),
    *_quantities("pq", "Panoptic quality", _SHARE, _NUCLEUS_SUFFIXES),
    Quantity(key="ece", title="Calibration error (ECE)", unit="share of probability, 0 to 1"),
)
"""What `step_measures` gives, in its order."""

PAIR_QUANTITIES: tuple[Quantity, ...] = (
    Quantity(key="agreement", title="Pixels that keep their class", unit=_SHARE),
    *_quantities("agreement", "Pixels that keep their class", _SHARE, _SUFFIXES),
    Quantity(key="logit_snr", title="Logit signal to noise", unit="dB"),
)
"""What `pair_measures` gives, in its order."""


def step_measures(tally: StepTally, tissues: Sequence[str], weights: Floats) -> Measures:
    """Every measure of `STEP_QUANTITIES`, float64 [R]; NaN where it is undefined.

    ``weights`` is [R, N]: how often each patch counts. ``tissues`` are the patches', [N].
    """
    found = weights @ tally.nuclei
    values = [
        *_pixel_measures(tally, weights),
        found.sum(axis=1),
        *found.T,
        _tissue_mean(tally.bpq, tissues, weights),
        _tissue_mean(_mean_of_defined(tally.class_pq), tissues, weights),
        *(_weighted_mean(column, weights) for column in tally.class_pq.T),
        _calibration_error(tally, weights),
    ]
    return _named(STEP_QUANTITIES, values)


def pair_measures(tally: PairTally, weights: Floats) -> Measures:
    """Every measure of `PAIR_QUANTITIES`, float64 [R]; NaN where it is undefined, infinite SNR without noise."""
    kept = _summed(tally.kept, weights)
    same = np.diagonal(kept, axis1=1, axis2=2)
    by_class = ratio(same, kept.sum(axis=2))
    values = [
        ratio(same.sum(axis=1), kept.sum(axis=(1, 2))),
        *by_class.T,
        _decibels(weights @ tally.signal, weights @ tally.noise),
    ]
    return _named(PAIR_QUANTITIES, values)


def _named(quantities: Sequence[Quantity], values: Sequence[Floats]) -> Measures:
    return {quantity.key: value for quantity, value in zip(quantities, values, strict=True)}


def _summed(counts: npt.NDArray[np.int64], weights: Floats) -> npt.NDArray[np.int64]:
    """``counts`` [N, …] summed over weighted patches: int64 [R, …], exact, since all is whole and below 2⁵³."""
    flat = weights @ counts.reshape(len(counts), -1)
    return np.asarray(flat.astype(np.int64).reshape(len(weights), *counts.shape[1:]))


def _pixel_measures(tally: StepTally, weights: Floats) -> Floats:
    """Dice, then IoU: of the foreground, the mean of the classes, each class; [16, R]."""
    pairs = zip(_summed(tally.pixels, weights), _summed(tally.unknown, weights), strict=True)
    rows = [_overlaps(ConfusionMatrix(counts, unknown)) for counts, unknown in pairs]
    return np.stack([np.array(row) for row in rows], axis=1)


def _overlaps(pixels: ConfusionMatrix) -> list[float]:
    dice = [pixels.foreground_dice(), pixels.class_mean_dice(), *pixels.dice()]
    return [*dice, pixels.foreground_iou(), pixels.class_mean_iou(), *pixels.iou()]


def _tissue_mean(scores: Floats, tissues: Sequence[str], weights: Floats) -> Floats:
    """PanNuke's mean of per-patch ``scores`` [N]: over the patches of a tissue, then over tissues (`PanopticTable`)."""
    names = np.array(tissues)
    means = [_weighted_mean(scores[names == t], weights[:, names == t]) for t in sorted(set(tissues))]
    return _mean_of_defined(np.stack(means, axis=1))


def _weighted_mean(scores: Floats, weights: Floats) -> Floats:
    """Mean over the patches that have a score, [R]; NaN where none that has one is drawn."""
    defined = ~np.isnan(scores)
    return ratio(weights[:, defined] @ scores[defined], weights[:, defined].sum(axis=1))


def _mean_of_defined(scores: Floats) -> Floats:
    """Mean along the last axis of what is not NaN."""
    defined = ~np.isnan(scores)
    return ratio(np.where(defined, scores, 0.0).sum(axis=-1), defined.sum(axis=-1))


def _calibration_error(tally: StepTally, weights: Floats) -> Floats:
    """Σ over bins of |right - confidence| / pixels: each bin's gap, weighted by its pixels."""
    sums = np.tensordot(weights, tally.confidence, axes=1)
    return ratio(np.abs(sums[..., 2] - sums[..., 1]).sum(axis=1), sums[..., 0].sum(axis=1))


def _decibels(signal: Floats, noise: Floats) -> Floats:
    """10·log10(signal / noise); infinite without noise, NaN without either."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(10.0 * np.log10(signal / noise))
