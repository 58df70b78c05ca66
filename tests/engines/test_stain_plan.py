"""The plan: one transform for all tiles, or each its own with a fallback."""

import numpy as np
import pytest

from support.real_tiles import dsb_tiles
from unetsharp_engines.errors import InputError
from unetsharp_engines.stain import IDENTITY, StainPlan, StainStatus, StainTransform, estimate, normalize_tiles

SLIDE = StainTransform(np.eye(3), np.full(3, -0.5))


def test_one_transform_for_all() -> None:
    tiles = dsb_tiles()
    expected = np.stack([SLIDE.apply(tile) for tile in tiles])
    np.testing.assert_array_equal(StainPlan(SLIDE).apply(tiles), expected)


def test_each_tile_its_own_and_the_flagged_one_the_slides() -> None:
    tiles = dsb_tiles()
    normalized = StainPlan(SLIDE, per_tile=True).apply(tiles)
    for tile, result in zip(tiles[:5], normalized[:5], strict=True):
        np.testing.assert_array_equal(result, estimate(tile).transform.apply(tile))
    assert estimate(tiles[5]).status is StainStatus.FEW_PIXELS
    np.testing.assert_array_equal(normalized[5], SLIDE.apply(tiles[5]))


def test_without_a_slide_a_flagged_tile_stays_as_it_is() -> None:
    tiles = dsb_tiles()
    np.testing.assert_array_equal(StainPlan(IDENTITY, per_tile=True).apply(tiles)[5], tiles[5])


def test_tiles_do_not_see_each_other() -> None:
    tiles = dsb_tiles()
    backwards = normalize_tiles(tiles[::-1], fallback=IDENTITY)[::-1]
    np.testing.assert_array_equal(backwards, normalize_tiles(tiles, fallback=IDENTITY))


@pytest.mark.parametrize("per_tile", [False, True])
def test_refuses_floats(per_tile: bool) -> None:
    with pytest.raises(InputError, match="it takes uint8 RGB"):
        StainPlan(IDENTITY, per_tile=per_tile).apply(dsb_tiles() / 255)
