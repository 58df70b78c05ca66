"""Tiles cover, weights sum to one, and what each tile says of itself comes back as one picture."""

from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unetsharp.infer.tiling import Axis, Grid, blend
from unetsharp_engines.errors import InputError

TILE = 32
axes = st.builds(
    Axis,
    length=st.integers(1, 300),
    tile=st.just(TILE),
    overlap=st.integers(0, TILE // 2),
    shift=st.integers(0, TILE),
)


def coverage(axis: Axis) -> npt.NDArray[np.float64]:
    """Sum of all tiles' weights over the picture's pixels."""
    total = np.zeros(axis.length)
    for start in axis.starts:
        inside = slice(max(0, -start), max(0, axis.length - start))
        total[max(0, start) : start + axis.tile] += axis.weights(start)[inside]
    return total


@given(axes)
def test_every_pixel_is_covered_and_weights_sum_to_one(axis: Axis) -> None:
    assert np.abs(coverage(axis) - 1).max() < 1e-6


@given(axes)
def test_pixels_are_the_picture_and_its_mirror(axis: Axis) -> None:
    line = np.arange(axis.length)
    mirrored = np.concatenate([line, line[::-1]])
    for start in axis.starts:
        expected = [mirrored[i % (2 * axis.length)] for i in range(start, start + axis.tile)]
        assert np.array_equal(axis.pixels(start), expected)


@given(axes)
def test_no_tile_is_without_use(axis: Axis) -> None:
    for start in axis.starts:
        assert start < axis.length
        assert start + axis.tile > 0
    without_shift = Axis(axis.length, axis.tile, axis.overlap)
    assert len(without_shift.starts) == max(1, -(-(axis.length - axis.overlap) // (axis.tile - axis.overlap)))


def test_a_picture_of_a_tiles_size_is_one_tile() -> None:
    grid = Grid.over((256, 256), tile=256)
    assert grid.positions == [(0, 0)]
    assert np.array_equal(grid.rows.weights(0), np.ones(256))


@pytest.mark.parametrize("overlap", [-1, 129, 256])
def test_an_overlap_beyond_half_a_tile_is_refused(overlap: int) -> None:
    with pytest.raises(InputError, match=f"{overlap} px does not fit; tiles of 256 take 0 to 128"):
        Grid.over((500, 500), tile=256, overlap=overlap)


def colour_as_probability(tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The "identity network": its first three channels are the pixels' colours."""
    out = np.zeros((len(tiles), 6, *tiles.shape[1:3]), np.float32)
    out[:, :3] = tiles.transpose(0, 3, 1, 2) / np.float32(255)
    return out


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    overlap=st.integers(0, TILE // 2),
    shift=st.integers(0, TILE),
    batch=st.integers(1, 9),
)
def test_an_identity_network_gives_the_picture_back(
    height: int, width: int, overlap: int, shift: int, batch: int
) -> None:
    picture = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)
    grid = Grid.over((height, width), tile=TILE, overlap=overlap, shift=shift)
    seen: list[int] = []
    blended = blend(picture, grid, partial(map, colour_as_probability), batch=batch, advance=seen.append)
    assert blended.shape == (6, height, width)
    assert np.abs(blended[:3].transpose(1, 2, 0) - picture / 255).max() < 1e-3  # float16 has 11 bits
    assert sum(seen) == len(grid.positions)
    assert max(seen) <= batch


def a_network_unsure_at_its_edges(tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Says 1 in a tile's middle, falling to 0 along its edges, as zero padding makes networks do."""
    ramp = np.minimum(1, np.minimum(np.arange(TILE) + 0.5, TILE - np.arange(TILE) - 0.5) / 4)
    out = np.zeros((len(tiles), 6, TILE, TILE), np.float32)
    out[:, 0] = np.outer(ramp, ramp)
    return out


def test_what_a_network_says_at_tile_edges_counts_little_and_leaves_no_seam() -> None:
    picture, unsure = np.zeros((200, 200, 3), np.uint8), partial(map, a_network_unsure_at_its_edges)
    grid = Grid.over((200, 200), tile=TILE, overlap=16)
    inner = blend(picture, grid, unsure, batch=8, advance=lambda _: None)[0, 20:-20, 20:-20]
    assert inner.min() > 0.9
    assert np.abs(np.diff(inner.astype(float), axis=0)).max() < 0.05
    no_overlap = Grid.over((200, 200), tile=TILE, overlap=0)
    seams = blend(picture, no_overlap, unsure, batch=8, advance=lambda _: None)[0, 20:-20, 20:-20]
    assert seams.min() < 0.05, "the test sees seams where there are some"
