"""Run a network over PanNuke folds and count what it got right."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unetsharp.evaluate.evaluation import Evaluation, Patch, Scores
from unetsharp.infer.nuclei import find_nuclei
from unetsharp.infer.resolution import Scale
from unetsharp_engines.contract import MPP, NUCLEUS_CLASSES
from unetsharp_engines.model_info import ModelInfo
from unetsharp_engines.runtimes.base import Runtime
from unetsharp_engines.stain import IDENTITY, StainPlan
from unetsharp_trainer.data.pannuke import UNKNOWN, Fold
from unetsharp_trainer.metrics.instances import by_class, centroids, judged

__all__ = ["Prediction", "evaluate", "predict", "prediction", "stain_as_trained"]

BATCH = 16
"""Patches given to the runtime at once."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network says of one patch."""

    channels: npt.NDArray[np.uint8]
    """Most probable channel of each pixel, [H, W], 0 to 5."""
    instances: npt.NDArray[np.int32]
    """Nuclei as `unetsharp.infer` separates them, [H, W]: 0 none, else 1 to n."""
    classes: npt.NDArray[np.uint8]
    """Channel of each nucleus, [n], 0 to 4."""


def evaluate(runtime: Runtime, folds: Iterable[Fold], advance: Callable[[int], object] = lambda _: None) -> Evaluation:
    """Judge the network in ``runtime`` on every patch of ``folds``. ``advance`` is told the patches just done.

    Patches are stain-normalized as in training (`stain_as_trained`), nuclei are found as ``unetsharp infer`` finds
    them. Raises InputError for patches that are no images or masks.
    """
    evaluation = Evaluation(model=runtime.info, runtime=f"{runtime.name} {runtime.version} on {runtime.device}")
    for fold in folds:
        for index, prediction in enumerate(predict(runtime, fold, range(len(fold)))):
            _judge(evaluation, fold, index, prediction)
            advance(1)
    return evaluation


def predict(runtime: Runtime, fold: Fold, indices: Iterable[int]) -> Iterator[Prediction]:
    """What the network says of patches ``indices`` of ``fold``, in order."""
    plan, wanted = stain_as_trained(runtime.info), list(indices)
    for first in range(0, len(wanted), BATCH):
        tiles_NHWC = np.stack([fold.image(index) for index in wanted[first : first + BATCH]])
        yield from map(prediction, runtime.probabilities(tiles_NHWC, plan))


def stain_as_trained(info: ModelInfo) -> StainPlan:
    """Normalization of patches as training does it: each by its own estimate, those that have none left as they are."""
    return StainPlan(IDENTITY, per_tile=info.stain == "macenko")


def prediction(probabilities_CHW: npt.NDArray[np.float32]) -> Prediction:
    """What class probabilities [6, H, W] at `contract.MPP` say: nuclei are found as ``unetsharp infer`` finds them."""
    height, width = probabilities_CHW.shape[1:]
    scale = Scale(height, width, MPP)
    instances, nuclei = find_nuclei(probabilities_CHW.astype(np.float16), scale)
    return Prediction(
        channels=probabilities_CHW.argmax(axis=0).astype(np.uint8),
        instances=instances,
        classes=np.array([nucleus.tissue_class.channel for nucleus in nuclei], dtype=np.uint8),
    )


def _judge(evaluation: Evaluation, fold: Fold, index: int, prediction: Prediction) -> None:
    """Add one patch to ``evaluation``."""
    tissue = fold.tissues[index]
    target = fold.target(index)
    instances = judged(prediction.instances, target == UNKNOWN)
    scores = evaluation.tissues.setdefault(tissue, Scores())
    scores.patches += 1
    scores.pixels.add(target, prediction.channels)
    ids, places = centroids(instances)
    scores.unjudged += len(prediction.classes) - len(ids)
    true_ids, true_places = centroids(fold.instances(index))
    scores.nuclei.add(true_places, fold.instance_classes(index)[true_ids - 1], places, prediction.classes[ids - 1])
    evaluation.panoptic.add(tissue, _masks(fold, index), by_class(instances, prediction.classes))
    evaluation.patches.append(Patch(fold=fold.number, index=index, tissue=tissue))


def _masks(fold: Fold, index: int) -> npt.NDArray[np.int64]:
    """PanNuke's own masks [256, 256, 5], as its official metric takes them: nuclei of two classes may overlap there."""
    return np.asarray(fold.masks[index])[..., : len(NUCLEUS_CLASSES)].astype(np.int64)
