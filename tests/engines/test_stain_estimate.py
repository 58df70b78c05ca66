"""The estimate: known stains are found again, and pixels that show none get a status, not a number."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from support.real_tiles import dsb_tiles
from unetsharp_engines.errors import InputError
from unetsharp_engines.stain import IDENTITY, StainEstimate, StainStatus, estimate
from unetsharp_engines.stain.target import TARGET_STAINS, WHITE

RUIFROK = np.array([[0.65, 0.07], [0.70, 0.99], [0.29, 0.11]])  # Ruifrok and Johnston 2001, by columns H, E
STAINS = {
    "target": TARGET_STAINS,
    "purple": np.array([[0.55, 0.25], [0.75, 0.85], [0.37, 0.46]]),
    "blue": np.array([[0.80, 0.20], [0.55, 0.90], [0.24, 0.39]]),
}


def rendered(stains: npt.NDArray[np.float64], concentrations: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Pixels uint8 (N, 3) that hold ``concentrations`` (N, 2) of ``stains`` (3, 2)."""
    levels = WHITE * np.exp(-concentrations @ stains.T) - 1
    return np.rint(levels).clip(0, 255).astype(np.uint8)


def mixture(seed: int, pixels: int = 20_000) -> npt.NDArray[np.float64]:
    """Concentrations (N, 2) of a tissue in which each stain also occurs nearly alone."""
    rng = np.random.default_rng(seed)
    concentrations = rng.uniform(0.4, 1.5, (pixels, 2))
    concentrations[: pixels // 10, 0] *= 0.02
    concentrations[pixels // 10 : pixels // 5, 1] *= 0.02
    return rng.permutation(concentrations)


def angles(found: npt.NDArray[np.float64], true: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    cosines = (found * true).sum(axis=0) / np.linalg.norm(found, axis=0) / np.linalg.norm(true, axis=0)
    return np.rad2deg(np.arccos(cosines.clip(-1, 1)))


def on_glass(tissue: npt.NDArray[np.uint8], share: float) -> npt.NDArray[np.uint8]:
    """``tissue`` pixels (N, 3) among so much glass that they are this ``share`` of all."""
    glass = np.full((round(len(tissue) * (1 - share) / share), 3), 238, np.uint8)
    return np.concatenate([tissue, glass])


def one_stain() -> npt.NDArray[np.uint8]:
    concentrations = np.random.default_rng(5).uniform(0.4, 2, (5000, 1)) * [1, 0]
    return rendered(STAINS["purple"], concentrations)


def line_with_outliers() -> npt.NDArray[np.uint8]:
    """99% of one stain, and too few of another to move the percentiles, but enough to spread a plane."""
    return np.concatenate([one_stain(), rendered(np.array([[0.2, 0], [0.2, 0], [0.9, 0]]), np.full((30, 2), 2.0))])


def faint_second_stain() -> npt.NDArray[np.uint8]:
    """Two stains, but the second in less than 1% of all pixels."""
    pure = np.array([[1.2, 0]] * 900 + [[0.8, 0]] * 900 + [[0, 1.2]] * 200)
    return on_glass(rendered(STAINS["blue"], pure), 0.06)


@pytest.mark.parametrize("name", STAINS)
@pytest.mark.parametrize("seed", range(3))
def test_finds_known_stains(name: str, seed: int) -> None:
    concentrations = mixture(seed)
    found = estimate(rendered(STAINS[name], concentrations))
    assert found.status is StainStatus.OK
    assert angles(found.stain_matrix, STAINS[name]).max() < 1.0
    lengths = np.linalg.norm(STAINS[name], axis=0)
    expected = np.percentile(concentrations, 99, axis=0) * lengths
    np.testing.assert_allclose(found.max_concentrations, expected, rtol=0.03)


def test_eosin_that_takes_hardly_any_red_is_found_reddened() -> None:
    """The method's own bias: tissue needs density in all three channels, so Ruifrok's eosin alone counts as glass."""
    found = estimate(rendered(RUIFROK, mixture(0)))
    hematoxylin_error, eosin_error = angles(found.stain_matrix, RUIFROK)
    assert hematoxylin_error < 1.0
    assert 5.0 < eosin_error < 15.0


def test_normalized_tissue_shows_the_target() -> None:
    """What comes out holds the target's stains: estimated again, the transform does next to nothing."""
    image = rendered(RUIFROK, mixture(1))
    once = estimate(image).transform.apply(image)
    twice = estimate(once).transform.apply(once)
    assert np.abs(twice.astype(int) - once).mean() < 2


@pytest.mark.parametrize("tile", dsb_tiles()[:5])
def test_does_not_care_for_the_order_of_pixels(tile: npt.NDArray[np.uint8]) -> None:
    shuffled = np.random.default_rng(0).permutation(tile.reshape(-1, 3))
    found, again = estimate(tile), estimate(shuffled)
    np.testing.assert_allclose(again.stain_matrix, found.stain_matrix, rtol=0, atol=1e-12)
    np.testing.assert_allclose(again.max_concentrations, found.max_concentrations, rtol=0, atol=1e-12)


def test_stains_are_unit_and_hematoxylin_takes_more_red() -> None:
    for tile in dsb_tiles()[:5]:
        stains = estimate(tile).stain_matrix
        np.testing.assert_allclose(np.linalg.norm(stains, axis=0), 1, rtol=1e-12)
        assert stains[0, 0] > stains[0, 1]


NOISE = np.random.default_rng(4).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("image", "status"),
    [
        (np.full((64, 64, 3), 255, np.uint8), StainStatus.FEW_PIXELS),
        (np.zeros((64, 64, 3), np.uint8), StainStatus.RANK_DEFICIENT),
        (np.full((64, 64, 3), (120, 60, 150), np.uint8), StainStatus.RANK_DEFICIENT),
        (np.full((1, 1, 3), 255, np.uint8), StainStatus.FEW_PIXELS),
        (np.full((1, 1, 3), 90, np.uint8), StainStatus.RANK_DEFICIENT),
        (np.zeros((0, 3), np.uint8), StainStatus.FEW_PIXELS),
        (np.full((64, 64, 3), (250, 20, 20), np.uint8), StainStatus.FEW_PIXELS),  # red ink is no tissue
        (np.arange(200, dtype=np.uint8)[:, None].repeat(3, axis=1), StainStatus.RANK_DEFICIENT),  # grey ramp
        (one_stain(), StainStatus.RANK_DEFICIENT),
        (on_glass(rendered(RUIFROK, mixture(0, 500)), 0.01), StainStatus.FEW_PIXELS),
        (on_glass(rendered(RUIFROK, mixture(0, 500)), 0.04), StainStatus.FEW_PIXELS),
        (on_glass(rendered(RUIFROK, mixture(0, 500)), 0.06), StainStatus.OK),
        (line_with_outliers(), StainStatus.STAINS_TOO_CLOSE),
        (faint_second_stain(), StainStatus.BAD_MAXC),
        (NOISE, StainStatus.OK),  # colours in all directions: there is a plane, and nothing breaks
    ],
    ids=[
        *("white", "black", "one colour", "one white pixel", "one dark pixel", "no pixel", "red ink", "grey ramp"),
        *("one stain", "1% tissue", "4% tissue", "6% tissue", "line with outliers", "faint stain", "noise"),
    ],
)
def test_status(image: npt.NDArray[np.uint8], status: StainStatus) -> None:
    found = estimate(image)
    assert found.status is status
    assert_sound(found, image)


def assert_sound(found: StainEstimate, image: npt.NDArray[np.uint8]) -> None:
    for numbers in (found.transform.matrix, found.transform.offset, found.stain_matrix, found.max_concentrations):
        assert np.isfinite(numbers).all()
    assert 0 <= found.tissue_fraction <= 1
    normalized = found.transform.apply(image)
    assert normalized.dtype == np.uint8 and normalized.shape == image.shape
    if found.status is not StainStatus.OK:
        assert found.transform is IDENTITY
        np.testing.assert_array_equal(normalized, image)


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=12).map(lambda s: (*s, 3))))
def test_any_image_gives_a_sound_estimate(image: npt.NDArray[np.uint8]) -> None:
    assert_sound(estimate(image), image)


@given(
    palette=hnp.arrays(np.uint8, (4, 3), elements=st.integers(0, 210)),
    counts=st.lists(st.integers(0, 400), min_size=4, max_size=4),
)
def test_any_few_colours_give_a_sound_estimate(palette: npt.NDArray[np.uint8], counts: list[int]) -> None:
    """Degenerate on purpose: pixels on points, lines and planes of colour space."""
    image = palette.repeat(counts, axis=0)
    assert_sound(estimate(image), image)


def test_a_plane_square_to_the_mean_mixes_no_stains() -> None:
    """Densities that spread only across their mean direction: the projected mean is nothing to measure angles from."""
    image = np.array(list(itertools.permutations((20, 60, 180))) * 50, np.uint8)
    found = estimate(image)
    assert found.status is StainStatus.RANK_DEFICIENT
    assert_sound(found, image)


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8)])
def test_refuses_what_is_not_rgb(image: np.ndarray) -> None:
    with pytest.raises(InputError, match="it takes uint8 RGB, channels last"):
        estimate(image)
