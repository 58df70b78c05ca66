"""The application: one matrix, one offset, and an identity that is one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from support.real_tiles import dsb_tiles
from unetsharp_engines.errors import InputError
from unetsharp_engines.stain import IDENTITY, StainTransform, estimate
from unetsharp_engines.stain.target import TARGET_MAX_CONCENTRATIONS, TARGET_STAINS, WHITE

ALL_LEVELS = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
FINITE = st.floats(-1e4, 1e4)


def some_transform() -> StainTransform:
    matrix = np.random.default_rng(1).normal(size=(3, 3)) / 3 + np.eye(3) / 2
    return StainTransform(matrix, np.array([0.5, 1.0, 1.5]))


def test_identity_returns_every_level_by_the_formula_too() -> None:
    np.testing.assert_array_equal(IDENTITY.apply(ALL_LEVELS), ALL_LEVELS)
    np.testing.assert_array_equal(np.trunc(IDENTITY.apply_levels(ALL_LEVELS)), ALL_LEVELS)


def test_identity_holds_in_float32() -> None:
    """What a GPU kernel computes without a special case."""
    exponents = np.log2(ALL_LEVELS.astype(np.float32) + 1) + IDENTITY.offset.astype(np.float32)
    np.testing.assert_array_equal(np.minimum(np.exp2(exponents), 255).astype(np.uint8), ALL_LEVELS)


def test_result_is_new_memory() -> None:
    image = ALL_LEVELS.copy()
    IDENTITY.apply(image)[...] = 0
    np.testing.assert_array_equal(image, ALL_LEVELS)


def test_formula_on_one_pixel() -> None:
    transform = StainTransform([[0.5, 0.25, 0.25], [0, 1, 0], [0, 0, 2]], [0.0, -1.0, 0.0])
    levels = transform.apply_levels(np.array([15, 63, 255], np.uint8))
    np.testing.assert_allclose(levels, [2**5.5, 32, 255], rtol=1e-14)  # the last is clipped from 65536


def test_the_target_maps_to_itself() -> None:
    """Stains that are the target's already: pixels mixed of them keep their level."""
    concentrations = np.random.default_rng(2).uniform(0.1, 1.5, (500, 2))
    levels = np.trunc(WHITE * np.exp(-concentrations @ TARGET_STAINS.T) - 1).clip(0).astype(np.uint8)
    densities = -np.log((levels + 1.0) / WHITE)
    expected = WHITE * np.exp(-densities @ np.linalg.pinv(TARGET_STAINS).T @ TARGET_STAINS.T)
    found = StainTransform.from_stains(TARGET_STAINS, TARGET_MAX_CONCENTRATIONS).apply_levels(levels)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("precision", [np.float64, np.float32])
def test_glass_maps_to_glass(precision: type[np.floating]) -> None:
    """Level 239 has no density and so maps to exactly 240: no precision may truncate it to 239."""
    for transform in (estimate(tile).transform for tile in dsb_tiles()[:5]):
        logs = np.log2(np.full(3, 240, precision))
        exponents = transform.matrix.astype(precision) @ logs + transform.offset.astype(precision)
        np.testing.assert_array_equal(np.exp2(exponents).astype(np.uint8), 240)
        np.testing.assert_array_equal(transform.apply(np.full(3, 239, np.uint8)), 240)


def test_from_stains_is_macenko_step_by_step() -> None:
    stains, maxima = np.array([[0.65, 0.07], [0.70, 0.99], [0.29, 0.11]]), np.array([1.2, 0.6])
    image = np.random.default_rng(3).integers(0, 256, (40, 50, 3), np.uint8)
    densities = -np.log((image.reshape(-1, 3) + 1.0) / WHITE)
    concentrations = np.linalg.lstsq(stains, densities.T)[0] * (TARGET_MAX_CONCENTRATIONS / maxima)[:, None]
    expected = np.minimum(WHITE * np.exp(-TARGET_STAINS @ concentrations), 255).T.reshape(image.shape)
    found = StainTransform.from_stains(stains, maxima).apply_levels(image)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@given(matrix=hnp.arrays(np.float64, (3, 3), elements=FINITE), offset=hnp.arrays(np.float64, 3, elements=FINITE))
def test_any_finite_transform_stays_within_levels(matrix: np.ndarray, offset: np.ndarray) -> None:
    levels = StainTransform(matrix, offset).apply_levels(ALL_LEVELS)
    assert levels.min() >= 0 and levels.max() <= 255


@given(matrix=hnp.arrays(np.float64, (3, 3), elements=FINITE), offset=hnp.arrays(np.float64, 3, elements=FINITE))
def test_json_keeps_every_bit(matrix: np.ndarray, offset: np.ndarray) -> None:
    transform = StainTransform(matrix, offset)
    again = StainTransform.from_json(transform.to_json(), source="memory")
    assert again == transform and hash(again) == hash(transform) and again.digest == transform.digest


def test_different_transforms_differ() -> None:
    assert some_transform() != IDENTITY
    assert some_transform().digest != IDENTITY.digest
    assert len({some_transform(), some_transform(), IDENTITY}) == 2


def test_is_read_only_and_a_copy() -> None:
    matrix = np.eye(3)
    transform = StainTransform(matrix, np.zeros(3))
    matrix[0, 0] = 5
    assert transform.matrix[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        transform.matrix[0, 0] = 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "7",
        '{"matrix": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}',
        '{"matrix": [[1, 0], [0, 1]], "offset": [0, 0, 0]}',
        '{"matrix": [[1, 0, 0], [0, 1, 0], [0, 0, NaN]], "offset": [0, 0, 0]}',
        '{"matrix": [[1, 0, 0], [0, 1, 0], [0, 0, 1e999]], "offset": [0, 0, 0]}',
        '{"matrix": [[1, 0, 0], [0, 1, 0], [0, 0, 1' + "0" * 400 + ']], "offset": [0, 0, 0]}',
        '{"matrix": "abc", "offset": [0, 0, 0]}',
        '{"matrix": null, "offset": null}',
    ],
)
def test_refuses_unfit_json(text: str) -> None:
    with pytest.raises(InputError, match=r"^lab\.json: not a stain transform"):
        StainTransform.from_json(text, source="lab.json")


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.uint8(3)]
)
def test_refuses_what_is_not_rgb(image: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"uint8 RGB, channels last: shape \(\.\.\., 3\)"):
        IDENTITY.apply(image)
