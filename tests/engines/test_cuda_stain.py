"""The stain kernels against the CPU path, emulated everywhere and on a GPU where there is one."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from support.cuda_emulator import emulated_kernels
from support.cuda_machine import Machine, machine_called
from support.real_tiles import dsb_tiles, shared_tiles
from unetsharp_engines.cuda import reference
from unetsharp_engines.cuda.constants import GROUP_BYTES, MAX_PIXELS, STATUSES, WHOLE_DENSITY
from unetsharp_engines.cuda.kernels import TRANSFORM, packed
from unetsharp_engines.stain import IDENTITY, StainStatus, StainTransform
from unetsharp_engines.stain.target import DENSITY

FALLBACK = StainTransform(np.array([[0.9, 0.1, 0.0], [0.0, 1.1, 0.0], [0.05, 0.0, 0.8]]), np.array([0.1, -0.2, 0.3]))
Tiles = npt.NDArray[np.uint8]


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with machine_called(request.param, monkeypatch) as found:
        yield found


def estimated(machine: Machine, tiles: Tiles) -> tuple[npt.NDArray[np.float32], list[StainStatus]]:
    """Transforms [N, 12] and statuses of tiles [N, ..., 3]."""
    n = len(tiles)
    transforms, statuses = machine.empty(n * TRANSFORM * 4), machine.empty(n * 4)
    machine.kernels.estimate(
        *(machine.holding(tiles), transforms, statuses, machine.empty(machine.kernels.workspace_bytes(n))),
        groups=n,
        pixels_per_group=tiles[0].size // 3,
        fallback=machine.holding(packed(FALLBACK)),
        stream=machine.stream,
    )
    found = machine.fetch(statuses, (n,), np.int32)
    return machine.fetch(transforms, (n, TRANSFORM), np.float32), [STATUSES[status] for status in found]


def applied(machine: Machine, tiles: Tiles, rows: npt.NDArray[np.float32], *, half: bool) -> npt.NDArray[np.float64]:
    """Planes [N, 3, H, W] by one row of 12 numbers for all, or one a tile."""
    n, height, width, _ = tiles.shape
    out = machine.empty(tiles.size * (2 if half else 4))
    machine.kernels.apply(
        *(machine.holding(tiles), machine.holding(rows), out),
        n=n,
        height=height,
        width=width,
        shared=rows.ndim == 1,
        half=half,
        stream=machine.stream,
    )
    return machine.fetch(out, (n, 3, height, width), np.float16 if half else np.float32).astype(np.float64)


def hostile_tiles(side: int = 128) -> Tiles:
    """Tiles that carry no stains, or hardly."""
    rng = np.random.default_rng(3)
    real = dsb_tiles()[0, :side, :side]
    plains = [np.full_like(real, colour) for colour in (0, 1, 240, 255, (120, 60, 140), (255, 0, 0))]
    little, pen = np.full_like(real, 243), np.full_like(real, (20, 90, 30))
    little[: side // 10, : side // 10] = real[: side // 10, : side // 10]
    pen[: side // 4] = real[: side // 4]
    ramp = np.linspace(20, 200, side).astype(np.uint8)
    grey = np.broadcast_to(ramp[None, :, None], real.shape)
    noise = rng.integers(0, 256, real.shape, np.uint8)
    return np.stack(
        [*plains, little, pen, grey, noise, real // 8, one_stain_and_specks(side), faint_second_stain(side)]
    )


def one_stain_and_specks(side: int) -> Tiles:
    """One stain, and too few specks of another to move the percentiles: the two found are less than 3° apart."""
    densities = np.linspace(0.3, 1.5, side * side)[:, None] * (0.6, 0.7, 0.39)
    densities[:: 2 * side] = (0.4, 0.4, 1.8)
    return rendered(densities, side)


def faint_second_stain(side: int) -> Tiles:
    """Glass with 6% tissue, of two stains, the second in less than 1% of all pixels."""
    densities = np.zeros((side * side, 3))
    tissue = densities[: side * side * 6 // 100]
    tissue[:] = (0.96, 0.66, 0.29)
    tissue[::2] *= 2 / 3
    tissue[::10] = (0.24, 1.08, 0.47)
    return rendered(densities, side)


def rendered(densities: npt.NDArray[np.float64], side: int) -> Tiles:
    levels: Tiles = np.rint(240 * np.exp(-densities) - 1).clip(0, 255).astype(np.uint8)
    return levels.reshape(side, side, 3)


def test_whole_densities_fill_the_sums_they_have() -> None:
    tissue = WHOLE_DENSITY[DENSITY >= 0.15].astype(object)
    assert (tissue**2).max() * MAX_PIXELS < 2**63
    assert (tissue**2).max() * MAX_PIXELS > 2**61
    assert GROUP_BYTES % 16 == 0


@pytest.mark.parametrize("tiles", [dsb_tiles(), hostile_tiles()], ids=["real", "hostile"])
def test_estimates_as_the_cpu_does(machine: Machine, tiles: Tiles) -> None:
    transforms, statuses = estimated(machine, tiles)
    expected, expected_statuses = reference.estimate(tiles, FALLBACK)
    assert statuses == expected_statuses
    flagged = [status is not StainStatus.OK for status in statuses]
    np.testing.assert_array_equal(transforms[flagged], np.tile(packed(FALLBACK), (sum(flagged), 1)))
    levels = np.rint(255 * applied(machine, tiles, transforms, half=True))
    far = np.abs(levels - np.rint(255 * reference.apply(tiles, expected)))
    assert far.max() <= 1
    assert far.mean(axis=(1, 2, 3)).max() <= 0.01
    assert (far == 0).mean(axis=(1, 2, 3)).min() >= 0.99


def test_each_status_is_met() -> None:
    _, statuses = reference.estimate(hostile_tiles(), FALLBACK)
    assert set(statuses) == set(StainStatus)


@pytest.mark.parametrize("half", [True, False])
def test_applies_within_a_hair_of_the_exact_level(machine: Machine, half: bool) -> None:
    tiles = dsb_tiles()
    transforms, _ = reference.estimate(tiles, FALLBACK)
    planes = applied(machine, tiles, np.stack([packed(t) for t in transforms]), half=half)
    exact = np.stack([t.apply_levels(tile) for t, tile in zip(transforms, tiles, strict=True)]).transpose(0, 3, 1, 2)
    levels = np.rint(255 * planes)
    off = levels != np.floor(exact)
    assert off.mean() < 1e-3
    assert np.abs(exact - np.rint(exact))[off].max(initial=0.0) <= 0.005
    assert np.abs(planes - levels / 255).max() <= (1.2e-3 if half else 1e-7)


@pytest.mark.parametrize("shape", [(32, 32), (96, 160), (384, 64)])
def test_the_identity_changes_nothing(machine: Machine, shape: tuple[int, int]) -> None:
    levels = np.arange(3 * shape[0] * shape[1]).reshape(1, *shape, 3) % 256
    tiles = np.concatenate([levels, levels[:, ::-1]]).astype(np.uint8)
    planes = applied(machine, tiles, packed(IDENTITY), half=False)
    np.testing.assert_array_equal(np.rint(255 * planes), tiles.transpose(0, 3, 1, 2))


def test_glass_stays_glass(machine: Machine) -> None:
    """Level 239 has no density: whatever the stains, it comes out at 240, as on the CPU, never at 239."""
    tiles = dsb_tiles()[:5].copy()
    tiles[:, :8] = 239
    transforms, _ = estimated(machine, tiles)
    assert (np.rint(255 * applied(machine, tiles, transforms, half=False))[:, :, :8] == 240).all()


def test_a_region_is_one_group_and_blocks_share_it(machine: Machine) -> None:
    region = dsb_tiles().reshape(1, -1, 3)
    transforms, statuses = estimated(machine, region)
    (expected,), _ = reference.estimate(region, FALLBACK)
    assert statuses == [StainStatus.OK]
    np.testing.assert_allclose(transforms[0], packed(expected), atol=1e-4)


def test_identical_tiles_get_identical_transforms_whatever_is_beside_them(machine: Machine) -> None:
    tiles = dsb_tiles()
    alone, _ = estimated(machine, tiles[:1])
    among, _ = estimated(machine, tiles[[3, 0, 5, 0]])
    np.testing.assert_array_equal(among[[1, 3]], np.tile(alone, (2, 1)))


def test_the_order_of_pixels_does_not_matter(machine: Machine) -> None:
    """Sums are of whole numbers, so not even their rounding differs."""
    tile = dsb_tiles()[0].reshape(1, -1, 3)
    shuffled = np.random.default_rng(5).permutation(tile, axis=1)
    np.testing.assert_array_equal(estimated(machine, tile)[0], estimated(machine, shuffled)[0])


def test_the_number_of_blocks_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = dsb_tiles()[:2]
    few, many = (Machine(emulated_kernels(monkeypatch, multiprocessors=m)) for m in (1, 100))
    np.testing.assert_array_equal(estimated(few, tiles)[0], estimated(many, tiles)[0])


def test_the_order_of_threads_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = dsb_tiles()[:3]
    forwards, back = (Machine(emulated_kernels(monkeypatch, multiprocessors=4, backwards=b)) for b in (False, True))
    found, again = estimated(forwards, tiles), estimated(back, tiles)
    np.testing.assert_array_equal(found[0], again[0])
    assert found[1] == again[1]


@pytest.mark.parametrize("pixels", [0, 24, MAX_PIXELS + 16])
def test_refuses_groups_it_cannot_read(machine: Machine, pixels: int) -> None:
    with pytest.raises(ValueError, match="pixels a group; it takes a multiple of 16"):
        machine.kernels.estimate(0, 0, 0, 0, groups=1, pixels_per_group=pixels, fallback=0, stream=None)


def test_refuses_tiles_it_cannot_read(machine: Machine) -> None:
    with pytest.raises(ValueError, match="a tile of 3 by 5 pixels"):
        machine.kernels.apply(0, 0, 0, n=1, height=3, width=5, shared=True, half=True, stream=None)


@pytest.mark.gpu
def test_hundreds_of_real_tiles_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with machine_called("gpu", monkeypatch) as machine:
        tiles = shared_tiles()
        for at in range(0, len(tiles), 64):
            test_estimates_as_the_cpu_does(machine, tiles[at : at + 64])
