"""Instance maps, as the metrics take them.

An instance map is an integer array [H, W]: 0 where there is no nucleus, else the nucleus's id; ids need not be
contiguous. ``classes`` beside it is [n]: element ``j`` is the network channel (0 to 4) of nucleus ``j + 1``, as
`unetsharp_trainer.data.pannuke.Fold` has it.
"""

import numpy as np
import numpy.typing as npt

from unetsharp_engines.contract import NUCLEUS_CLASSES

__all__ = ["by_class", "centroids", "judged", "merged"]

Map = npt.NDArray[np.integer]


def by_class(instances: Map, classes: Map) -> npt.NDArray[np.int64]:
    """PanNuke's form: int64 [H, W, 5], each nucleus's id in the channel of its class. ``classes`` as above."""
    ids = instances.astype(np.int64)
    channels = np.concatenate([[-1], classes])[ids]
    return np.where(channels[..., None] == np.arange(len(NUCLEUS_CLASSES)), ids[..., None], 0)


def merged(ids_HWC: Map) -> npt.NDArray[np.int64]:
    """One instance map int64 [H, W] of PanNuke's form [H, W, 5]: class and id make a nucleus.

    Where nuclei of two classes overlap the later channel wins, as in PanNuke's official metric.
    """
    stride = int(ids_HWC.max(initial=0)) + 1
    instances = np.zeros(ids_HWC.shape[:2], dtype=np.int64)
    for channel, ids in enumerate(np.moveaxis(ids_HWC, -1, 0)):
        np.copyto(instances, ids.astype(np.int64) + channel * stride, where=ids > 0)
    return instances


def judged(predicted: Map, unknown: npt.NDArray[np.bool_]) -> Map:
    """``predicted`` without the nuclei that the truth cannot judge.

    ``unknown`` is bool [H, W], True where there are nuclei of unknown class whose outlines nobody stated one by one.
    A predicted nucleus with more than half of its pixels there is neither right nor wrong and is taken out. It could
    not have matched a known nucleus: IoU > 0.5 needs more than half of its pixels on that one.
    """
    ids = np.unique(predicted[unknown])
    size = np.bincount(predicted.ravel())
    hidden = np.bincount(predicted[unknown], minlength=len(size))
    return np.where(np.isin(predicted, ids[2 * hidden[ids] > size[ids]]), 0, predicted)


def centroids(instances: Map) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Ids of the nuclei, int64 [n], rising, and their centroids (row, column) in pixels, float64 [n, 2]."""
    rows, columns = np.nonzero(instances)
    ids, nucleus, sizes = np.unique(instances[rows, columns], return_inverse=True, return_counts=True)
    sums = [np.bincount(nucleus, weights=axis, minlength=len(ids)) for axis in (rows, columns)]
    return ids.astype(np.int64), np.stack(sums, axis=1) / sizes[:, None]
