"""One number for each nucleus: touching nuclei are split by watershed on their distance transform."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed

from unetsharp_engines.contract import MPP

__all__ = ["MIN_AREA", "MIN_AREA_UM2", "separate"]

MIN_AREA_UM2: float = 3.0
"""Smallest nucleus, µm²: a disc 2 µm across. Intact nuclei are 5 µm and more; smaller specks are debris, granules and
slivers of nuclei at a picture's border."""

MAX_HOLE_UM2: float = 1.0
"""Holes up to this are closed before splitting: a bright nucleolus or a few stray pixels would bend the distance
transform. Larger ones may be a lumen among touching nuclei, and are closed only if one nucleus holds them."""

SMOOTHING_UM: float = 0.25
"""Standard deviation of the Gaussian that takes the pixel stairs off the distance transform."""

SPLIT_DEPTH_UM: float = 0.19
"""How much narrower than both its sides a waist must be, in radius, for two nuclei to be told apart (h of the
h-maxima). Smoothing and depth were chosen on the instance labels of DSB 2018 and PanNuke-like tiles."""

MIN_AREA: int = round(MIN_AREA_UM2 / MPP**2)
"""`MIN_AREA_UM2` in network pixels."""
_MAX_HOLE = round(MAX_HOLE_UM2 / MPP**2)
_SMOOTHING = SMOOTHING_UM / MPP
_SPLIT_DEPTH = SPLIT_DEPTH_UM / MPP
_MARGIN = int(np.ceil(4 * _SMOOTHING))
"""The Gaussian's reach, so that a component's crop gives what the whole picture would."""

_CROSS = ndimage.generate_binary_structure(2, 1)
_WITH_DIAGONALS = ndimage.generate_binary_structure(2, 2)
"""Nuclei hang together by edges, gaps by corners too: so every nucleus has one simple outline."""

Bool = npt.NDArray[np.bool_]
Int = npt.NDArray[np.int32]


def separate(foreground: Bool) -> Int:
    """Number the nuclei of a foreground mask at `contract.MPP`: int32 [H, W], 0 outside, 1, 2, … from the top down.

    ``foreground`` is bool [H, W]. Nuclei are 4-connected, without holes, and at least `MIN_AREA_UM2` large. Each
    component is flooded from the h-maxima of its smoothed Euclidean distance transform (scikit-image); the picture's
    border counts as inside, since a nucleus goes on there.
    """
    return _whole_nuclei(_pieces(_close_small_holes(foreground)))


def _pieces(foreground: Bool) -> Int:
    """Number the watershed's basins of every component, from 1 on."""
    components, _ = ndimage.label(foreground, output=np.int32)
    pieces = np.zeros(foreground.shape, np.int32)
    count = 0
    for number, place in _places(components):
        mask = components[place] == number
        split = _split(mask)
        pieces[place][mask] = split[mask] + count
        count += int(split.max())
    return pieces


def _places(numbered: Int) -> Iterator[tuple[int, tuple[slice, slice]]]:
    """Each number and its bounding box grown by `_MARGIN`, within the picture."""
    for index, box in enumerate(ndimage.find_objects(numbered)):
        rows, columns = (slice(max(0, s.start - _MARGIN), s.stop + _MARGIN) for s in box)
        yield index + 1, (rows, columns)


def _close_small_holes(foreground: Bool) -> Bool:
    gaps, _ = ndimage.label(~foreground, structure=_WITH_DIAGONALS, output=np.int32)
    closed = np.array(foreground)
    for index, box in enumerate(ndimage.find_objects(gaps)):
        if max(s.stop - s.start for s in box) <= _MAX_HOLE:
            gap = gaps[box] == index + 1
            closed[box] |= gap & (np.count_nonzero(gap) <= _MAX_HOLE)
    return closed


def _split(mask: Bool) -> Int:
    """One component, bool [h, w] → int32 [h, w] numbering its nuclei from 1."""
    whole = mask.astype(np.int32)
    if np.count_nonzero(mask) < 2 * MIN_AREA:
        return whole
    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask).astype(np.float32), _SMOOTHING)
    distance[~mask] = 0
    if ndimage.label(local_maxima(distance), structure=_WITH_DIAGONALS)[1] < 2:  # cheap, and settles most components
        return whole
    markers, count = _h_maxima(distance)
    flooded = watershed(-distance, markers, mask=mask)
    small = np.bincount(flooded.ravel(), minlength=count + 1) < MIN_AREA
    if small[1:].all():
        return whole
    if small.any():  # slivers belong to the neighbour that floods them when they are no source
        markers[small[markers]] = 0
        flooded = watershed(-distance, markers, mask=mask)
    return np.asarray(flooded, np.int32)


def _h_maxima(surface: npt.NDArray[np.float32]) -> tuple[Int, int]:
    """Number the h-maxima, h being `SPLIT_DEPTH_UM`, and how many there are: the regional maxima of a reconstruction.

    scikit-image's own `h_maxima` marks equally high peaks each for itself, however shallow the saddle between them:
    it splits long ellipses.
    """
    lowered = reconstruction(surface - np.float32(_SPLIT_DEPTH), surface, footprint=_CROSS)
    markers, count = ndimage.label(local_maxima(lowered, connectivity=1), output=np.int32)
    return markers, count


def _whole_nuclei(pieces: Int) -> Int:
    """Close the holes of each piece, drop the small, and number the rest anew, in the same order. Changes ``pieces``.

    A piece inside another's hole becomes part of it: the outer comes first in reading order, so what it has taken is
    gone when the inner one's turn comes.
    """
    for index, box in enumerate(ndimage.find_objects(pieces)):
        if box is None:  # the number of a sliver
            continue
        view = pieces[box]
        filled = ndimage.binary_fill_holes(view == index + 1, structure=_WITH_DIAGONALS)
        view[filled] = index + 1 if np.count_nonzero(filled) >= MIN_AREA else 0
    return _renumbered(pieces)


def _renumbered(numbered: Int) -> Int:
    present = np.array([False, *(box is not None for box in ndimage.find_objects(numbered))])
    renumber = np.cumsum(present, dtype=np.int32) * present
    return np.asarray(renumber[numbered], np.int32)
