"""What an evaluation counted, and the scores that follow."""

import math
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

from unetsharp_engines.contract import BACKGROUND, CLASSES, NUCLEUS_CLASSES
from unetsharp_engines.model_info import ModelInfo
from unetsharp_trainer.metrics.confusion import ConfusionMatrix, presence_of
from unetsharp_trainer.metrics.detection import RADIUS_UM, DetectionMatrix
from unetsharp_trainer.metrics.panoptic import PanopticTable, TissueQuality

__all__ = ["Evaluation", "Patch", "Scores"]


@dataclass(frozen=True, kw_only=True)
class Patch:
    """Where a patch is found again."""

    fold: int
    index: int
    """Row in the fold's arrays."""
    tissue: str


@dataclass
class Scores:
    """What was counted on some patches. Merge with ``+``."""

    patches: int = 0
    pixels: ConfusionMatrix = field(default_factory=ConfusionMatrix)
    nuclei: DetectionMatrix = field(default_factory=DetectionMatrix)
    unjudged: int = 0
    """Predicted nuclei that lie mostly on nuclei of unknown class: neither right nor wrong, in no nucleus score."""

    def __add__(self, other: "Scores") -> "Scores":
        return Scores(
            self.patches + other.patches,
            self.pixels + other.pixels,
            self.nuclei + other.nuclei,
            self.unjudged + other.unjudged,
        )


@dataclass(kw_only=True)
class Evaluation:
    """One network, run on some patches, judged by their truth."""

    model: ModelInfo
    runtime: str
    """Name, version and device of what ran it."""
    patches: list[Patch] = field(default_factory=list)
    tissues: dict[str, Scores] = field(default_factory=dict)
    panoptic: PanopticTable = field(default_factory=PanopticTable)
    """Its images are `patches`, in order."""

    @property
    def overall(self) -> Scores:
        """All tissues together."""
        return reduce(add, self.tissues.values(), Scores())

    @property
    def folds(self) -> list[int]:
        """The folds that the patches are from, rising."""
        return sorted({patch.fold for patch in self.patches})

    def to_dict(self) -> dict[str, Any]:
        """All counts and scores as JSON takes them: an undefined score is None, and ``presence`` says why."""
        qualities = {row.tissue: row for row in self.panoptic.by_tissue()}
        return {
            "folds": self.folds,
            **_scores(self.overall),
            "panoptic": {
                "mpq": _number(self.panoptic.mpq()),
                "bpq": _number(self.panoptic.bpq()),
                "class_pq": _by_name(self.panoptic.class_pq().tolist()),
            },
            "tissues": {tissue: _tissue(self.tissues[tissue], qualities[tissue]) for tissue in sorted(self.tissues)},
        }


def _tissue(scores: Scores, quality: TissueQuality) -> dict[str, Any]:
    return {**_scores(scores), "mpq": _number(quality.mpq), "bpq": _number(quality.bpq)}


def _scores(scores: Scores) -> dict[str, Any]:
    return {"patches": scores.patches, "pixels": _pixels(scores.pixels), "nuclei": _nuclei(scores)}


def _pixels(pixels: ConfusionMatrix) -> dict[str, Any]:
    names = [c.name for c in CLASSES]
    columns = {
        "presence": [presence.value for presence in pixels.presence],
        "true_pixels": pixels.true_pixels.tolist(),
        "predicted_pixels": pixels.predicted_pixels.tolist(),
        "iou": pixels.iou().tolist(),
        "dice": pixels.dice().tolist(),
    }
    return {
        "classes": _table(names, columns),
        "average_without_background_pooled": _pair(pixels.pooled_iou(), pixels.pooled_dice()),
        "average_without_background_class_mean": _pair(pixels.class_mean_iou(), pixels.class_mean_dice()),
        "foreground": _pair(pixels.foreground_iou(), pixels.foreground_dice()),
        "unknown_class_pixels": int(pixels.unknown.sum()),
        "unknown_class_pixels_found": int(pixels.unknown[: BACKGROUND.channel].sum()),
        "confusion": pixels.counts.tolist(),
    }


def _nuclei(scores: Scores) -> dict[str, Any]:
    nuclei = scores.nuclei
    true, predicted = nuclei.true_nuclei.tolist(), nuclei.predicted_nuclei.tolist()
    columns = {
        "presence": [presence_of(*pair).value for pair in zip(true, predicted, strict=True)],
        "true": true,
        "predicted": predicted,
        "precision": nuclei.class_precision().tolist(),
        "recall": nuclei.class_recall().tolist(),
        "f1": nuclei.class_f1().tolist(),
    }
    return {
        "classes": _table([c.name for c in NUCLEUS_CLASSES], columns),
        "detection": {
            "radius_um": RADIUS_UM,
            "true": sum(true),
            "predicted": sum(predicted),
            "not_judged": scores.unjudged,
            "precision": _number(nuclei.precision()),
            "recall": _number(nuclei.recall()),
            "f1": _number(nuclei.f1()),
            "class_accuracy": _number(nuclei.class_accuracy()),
        },
        "confusion": nuclei.counts.tolist(),
    }


def _table(names: list[str], columns: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
    return {name: {key: _number(column[row]) for key, column in columns.items()} for row, name in enumerate(names)}


def _pair(iou: float, dice: float) -> dict[str, float | None]:
    return {"iou": _number(iou), "dice": _number(dice)}


def _by_name(values: list[float]) -> dict[str, float | None]:
    return {c.name: _number(value) for c, value in zip(NUCLEUS_CLASSES, values, strict=True)}


def _number(value: Any) -> Any:
    """``value`` as JSON knows it: NaN is None."""
    return None if isinstance(value, float) and math.isnan(value) else value
