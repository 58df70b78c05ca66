"""Instances, classes, outlines and areas against closed forms: discs, rings, squares."""

import time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from shapely.geometry import Polygon, box

from unetsharp.infer.contours import outline
from unetsharp.infer.instances import MIN_AREA_UM2, separate
from unetsharp.infer.nuclei import Nucleus, find_nuclei
from unetsharp.infer.resolution import Scale
from unetsharp_engines.contract import BACKGROUND, CLASSES, MPP, class_named

Bool = npt.NDArray[np.bool_]


def disc(size: tuple[int, int], y: float, x: float, radius: float) -> Bool:
    rows, columns = np.ogrid[: size[0], : size[1]]
    return np.asarray((rows + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2 <= radius**2)


def probabilities(size: tuple[int, int], paint: list[tuple[Bool, str, float]]) -> npt.NDArray[np.float16]:
    """Background, with each mask's class painted at a probability, the rest of it background."""
    out = np.zeros((len(CLASSES), *size), np.float16)
    out[BACKGROUND.channel] = 1
    for mask, name, probability in paint:
        out[:, mask] = 0
        out[class_named(name).channel, mask] = probability
        out[BACKGROUND.channel, mask] = 1 - probability
    return out


def nuclei_of(size: tuple[int, int], paint: list[tuple[Bool, str, float]], mpp: float = MPP) -> tuple[Nucleus, ...]:
    scale = Scale(round(size[0] * MPP / mpp), round(size[1] * MPP / mpp), mpp)
    return find_nuclei(probabilities(size, paint), scale)[1]


def test_discs_have_their_class_probability_area_and_centre() -> None:
    size = (120, 160)
    painted = [
        (disc(size, 30, 40, 12), "Neoplastic", 0.9),
        (disc(size, 80, 40, 9), "Inflammatory", 0.8),
        (disc(size, 80, 110, 15), "Dead", 0.7),
    ]
    nuclei = nuclei_of(size, painted)
    assert [n.tissue_class.name for n in nuclei] == ["Neoplastic", "Dead", "Inflammatory"]  # by topmost pixel
    for nucleus, (mask, _, probability) in zip(nuclei, [painted[0], painted[2], painted[1]], strict=True):
        assert nucleus.probability == pytest.approx(probability, abs=1e-3)
        assert nucleus.area_um2 == pytest.approx(mask.sum() * MPP**2)
        assert not nucleus.on_border
    for nucleus, (x, y, radius) in zip(nuclei, [(40, 30, 12), (110, 80, 15), (40, 80, 9)], strict=True):
        assert nucleus.centroid == pytest.approx((x, y), abs=0.1)
        assert nucleus.area_um2 == pytest.approx(np.pi * radius**2 * MPP**2, rel=0.03)


@pytest.mark.parametrize("radius", [8, 12, 20])
@pytest.mark.parametrize("reach", [1.3, 1.5, 1.7, 2.0])
@pytest.mark.parametrize("angle", [0, 30, 45, 90])
def test_two_touching_discs_are_two(radius: int, reach: float, angle: float) -> None:
    """Centres ``reach`` radii apart: waists of 0.76 down to 0 of the diameter."""
    size = (120, 120)
    y, x = radius * reach / 2 * np.sin(np.deg2rad(angle)), radius * reach / 2 * np.cos(np.deg2rad(angle))
    both = disc(size, 60 - y, 60 - x, radius) | disc(size, 60 + y, 60 + x, radius)
    instances = separate(both)
    assert instances.max() == 2
    smaller, larger = np.sort(np.bincount(instances.ravel())[1:])
    assert larger <= 1.1 * smaller
    assert np.array_equal(instances > 0, both)


def test_a_row_of_discs_is_as_many() -> None:
    size = (60, 400)
    row = np.logical_or.reduce([disc(size, 30, 30 + 18 * i, 11) for i in range(18)])
    assert separate(row).max() == 18


@pytest.mark.parametrize("radius", [5, 9, 14, 25, 40])
@pytest.mark.parametrize("stretch", [1.0, 1.5, 2.5])
@pytest.mark.parametrize("angle", [0, 20, 45])
def test_one_ellipse_is_one(radius: float, stretch: float, angle: float) -> None:
    rows, columns = np.mgrid[:260, :260] - 129.7
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    along, across = c * columns + s * rows, c * rows - s * columns
    ellipse = (along / (radius * stretch)) ** 2 + (across / radius) ** 2 <= 1
    assert separate(ellipse).max() == 1


def test_a_ragged_edge_does_not_split() -> None:
    noise = np.random.default_rng(5).random((100, 100))
    ragged = disc((100, 100), 50, 50, 20) | (disc((100, 100), 50, 50, 22) & (noise > 0.5))
    assert separate(ragged).max() == 1


def test_specks_are_dropped_and_holes_filled() -> None:
    size = (100, 100)
    side = int(np.sqrt(MIN_AREA_UM2) / MPP)
    speck = np.zeros(size, bool)
    speck[5 : 5 + side, 5 : 5 + side - 1] = True
    assert separate(speck).max() == 0
    pale = disc(size, 50, 50, 15) & ~disc(size, 52, 49, 2)
    assert np.array_equal(separate(pale), disc(size, 50, 50, 15))


def test_a_lumen_among_touching_nuclei_stays_open() -> None:
    size = (200, 200)
    turns = 2 * np.pi * np.arange(14) / 14
    ring = np.logical_or.reduce([disc(size, 100 + 50 * np.sin(t), 100 + 50 * np.cos(t), 13) for t in turns])
    assert ndimage.label(ring)[1] == 1
    instances = separate(ring)
    assert instances.max() == 14
    assert instances[100, 100] == 0


def test_what_lies_inside_a_nucleus_belongs_to_it() -> None:
    size = (200, 200)
    vacuolated = disc(size, 100, 100, 40) & ~disc(size, 84, 100, 20)  # thickest below: one peak, so not split
    nested = vacuolated | disc(size, 84, 100, 7)
    assert np.array_equal(separate(nested), disc(size, 100, 100, 40))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), density=st.floats(0.2, 0.95), coarse=st.integers(1, 6))
def test_whatever_the_mask_nuclei_hang_together_and_have_no_holes(seed: int, density: float, coarse: int) -> None:
    noise = np.random.default_rng(seed).random((90 // coarse + 1, 70 // coarse + 1)) < density
    instances = separate(noise.repeat(coarse, axis=0).repeat(coarse, axis=1))
    for number in range(1, instances.max() + 1):
        mask = instances == number
        assert mask.sum() * MPP**2 >= MIN_AREA_UM2
        assert ndimage.label(mask)[1] == 1
        assert np.array_equal(ndimage.binary_fill_holes(mask, structure=np.ones((3, 3))), mask)


def test_nuclei_cut_by_the_border_are_found_whole_and_marked() -> None:
    size = (80, 80)
    nuclei = nuclei_of(size, [(disc(size, 0, 40, 15), "Connective", 0.9), (disc(size, 60, 40, 10), "Connective", 0.9)])
    assert [n.on_border for n in nuclei] == [True, False]
    assert nuclei[0].polygon.min() >= 0


def test_the_class_is_that_of_the_largest_sum_not_of_the_most_pixels() -> None:
    size = (60, 60)
    whole = disc(size, 30, 30, 12)
    left = whole & (np.arange(60) < 31)
    nuclei = nuclei_of(size, [(whole, "Epithelial", 0.95), (left, "Neoplastic", 0.6)])
    assert len(nuclei) == 1
    assert nuclei[0].tissue_class.name == "Epithelial"
    expected = 0.95 * (whole & ~left).sum() / whole.sum()
    assert nuclei[0].probability == pytest.approx(expected, abs=2e-3)


def test_an_empty_picture_has_none() -> None:
    assert nuclei_of((40, 40), []) == ()


def one_shape(mask: Bool) -> Bool:
    """The largest 4-connected part of ``mask``, holes filled: what `outline` takes."""
    labels, count = ndimage.label(mask)
    assume(count > 0)
    largest = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
    return np.asarray(ndimage.binary_fill_holes(largest, structure=np.ones((3, 3))))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_outlines_are_simple_inside_and_half_a_pixel_small(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 14)), data.draw(st.integers(1, 14))
    density = data.draw(st.floats(0.3, 0.95))
    mask = one_shape(np.random.default_rng(data.draw(st.integers(0, 2**32))).random((height, width)) < density)
    ring = outline(mask)
    polygon = Polygon(ring)
    assert polygon.is_valid
    assert polygon.exterior.is_ccw
    assert polygon.area == pytest.approx(mask.sum() - 0.5)
    assert polygon.within(box(0, 0, width, height))
    assert np.array_equal(ring[0], ring[-1])
    centres = [polygon.covers(box(x + 0.5, y + 0.5, x + 0.5, y + 0.5).centroid) for y, x in np.ndindex(*mask.shape)]
    assert np.array_equal(np.reshape(centres, mask.shape), mask)


def test_an_outline_has_no_points_it_does_not_need() -> None:
    square = np.ones((10, 10), bool)
    assert len(outline(square)) == 8 + 1  # four sides, four cut corners, closed


@pytest.mark.parametrize("mpp", [0.1, 0.25, 0.499, 1.0])
def test_places_and_areas_are_in_the_pictures_pixels(mpp: float) -> None:
    size = (400, 400)
    (nucleus,) = nuclei_of(size, [(disc(size, 100, 300, 40), "Dead", 0.9)], mpp)
    assert nucleus.centroid == pytest.approx((300 * MPP / mpp, 100 * MPP / mpp), rel=2e-2)
    assert nucleus.area_um2 == pytest.approx(np.pi * 10**2, rel=0.02)
    assert Polygon(nucleus.polygon).area * mpp**2 == pytest.approx(nucleus.area_um2, rel=0.01)
    assert Polygon(nucleus.polygon).centroid.coords[0] == pytest.approx(nucleus.centroid, rel=1e-3)


def test_five_thousand_nuclei_take_seconds() -> None:
    size = (2000, 2000)
    yx = np.mgrid[14:2000:28, 14:2000:28].reshape(2, -1).T[:5000] + np.random.default_rng(3).integers(-5, 6, (5000, 2))
    rows, columns = np.mgrid[-9:10, -9:10]
    stamp = np.argwhere(rows**2 + columns**2 <= 81) - 9
    field = np.zeros(size, bool)
    at = (yx[:, None] + stamp).clip(0, 1999)
    field[at[..., 0], at[..., 1]] = True
    start = time.process_time()
    nuclei = nuclei_of(size, [(field, "Neoplastic", 0.9)])
    seconds = time.process_time() - start
    assert 4800 <= len(nuclei) <= 5000
    assert seconds < 15, f"{seconds:.1f} s"
