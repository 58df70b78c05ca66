"""What is said of each nucleus: class, probability, outline, area, place."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from unetsharp.infer.contours import outline
from unetsharp.infer.instances import separate
from unetsharp.infer.resolution import Scale
from unetsharp_engines.contract import BACKGROUND, CLASSES, NUCLEUS_CLASSES, TissueClass

__all__ = ["Nucleus", "find_nuclei", "foreground"]


@dataclass(frozen=True, eq=False)
class Nucleus:
    """One nucleus. Places are in pixels of the user's picture, x to the right, y down, (0, 0) its upper left corner."""

    tissue_class: TissueClass
    """The nucleus class with the largest sum of probabilities over the nucleus's pixels."""
    probability: float
    """Mean probability of that class over the nucleus's pixels, 0 to 1."""
    polygon: npt.NDArray[np.float64]
    """Outline, float64 [V + 1, 2], (x, y), first = last point; simple, counter-clockwise in x, y as they are."""
    centroid: tuple[float, float]
    """Mean (x, y) of its pixels."""
    area_um2: float
    """Pixels at the network's resolution times their area."""
    on_border: bool
    """It touches the picture's border: part of it may lie outside."""


def foreground(probabilities_CHW: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Where the most probable class is a nucleus class, bool [H, W]. A tie with background counts as nucleus."""
    best_nucleus = probabilities_CHW[: len(NUCLEUS_CLASSES)].max(axis=0)
    return np.asarray(best_nucleus >= probabilities_CHW[BACKGROUND.channel])


def find_nuclei(
    probabilities_CHW: npt.NDArray[np.float16], scale: Scale, corner: tuple[int, int] = (0, 0)
) -> tuple[npt.NDArray[np.int32], tuple[Nucleus, ...]]:
    """Instances and nuclei of float16 [6, h, w] class probabilities on the network's grid of ``scale``.

    They may be of a part of the grid that begins at ``corner`` (row, column); nuclei are placed in the whole picture
    all the same. Instances are int32 [h, w], 0 outside and i + 1 on the pixels of nucleus i.
    """
    instances = separate(foreground(probabilities_CHW))
    boxes = ndimage.find_objects(instances)
    nuclei = (_measure(instances, probabilities_CHW, scale, corner, i + 1, box) for i, box in enumerate(boxes))
    return instances, tuple(nuclei)


def _measure(
    instances: npt.NDArray[np.int32],
    probabilities_CHW: npt.NDArray[np.float16],
    scale: Scale,
    corner: tuple[int, int],
    number: int,
    box: tuple[slice, slice],
) -> Nucleus:
    mask = instances[box] == number
    means = probabilities_CHW[:, box[0], box[1]][:, mask].mean(axis=1, dtype=np.float64)
    tissue_class = CLASSES[int(means[: len(NUCLEUS_CLASSES)].argmax())]
    rows, columns = np.nonzero(mask)
    top, left = (s.start + c for s, c in zip(box, corner, strict=True))
    bottom, right = (s.stop + c for s, c in zip(box, corner, strict=True))
    corner_xy = np.array([left, top])
    to_picture_xy = np.array(scale.picture_per_network[::-1])
    height, width = scale.network_size
    center_xy = (np.array([columns.mean(), rows.mean()]) + 0.5 + corner_xy) * to_picture_xy
    return Nucleus(
        tissue_class=tissue_class,
        probability=float(means[tissue_class.channel]),
        polygon=(outline(mask) + corner_xy) * to_picture_xy,
        centroid=(float(center_xy[0]), float(center_xy[1])),
        area_um2=len(rows) * scale.network_pixel_area,
        on_border=min(top, left) == 0 or bottom == height or right == width,
    )
