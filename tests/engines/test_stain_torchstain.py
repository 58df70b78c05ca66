"""The reference against torchstain 1.4.1's torch backend, made to compute in float64, on real tiles."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from support.real_tiles import dsb_tiles, shared_tiles
from unetsharp_engines.stain import StainStatus, estimate
from unetsharp_engines.stain.target import TARGET_MAX_CONCENTRATIONS, TARGET_STAINS

torch = pytest.importorskip("torch", reason="torchstain's reference backend is torch")
macenko = pytest.importorskip("torchstain.torch.normalizers.macenko", reason="torchstain is not installed")

Normalize = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.int64]]


@pytest.fixture
def torchstain(monkeypatch: pytest.MonkeyPatch) -> Normalize:
    """torchstain's ``normalize`` of uint8 [H, W, 3]. Stock, it computes in float32 and strays up to 4 levels."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    normalizer = macenko.TorchMacenkoNormalizer()
    np.testing.assert_array_equal(normalizer.HERef.numpy(), TARGET_STAINS.astype(np.float32))
    np.testing.assert_array_equal(normalizer.maxCRef.numpy(), TARGET_MAX_CONCENTRATIONS.astype(np.float32))
    normalizer.HERef = torch.tensor(TARGET_STAINS.tolist(), dtype=torch.float64)
    normalizer.maxCRef = torch.tensor(TARGET_MAX_CONCENTRATIONS.tolist(), dtype=torch.float64)

    def normalize(tile: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        normalized, _, _ = normalizer.normalize(torch.tensor(tile).permute(2, 0, 1), stains=False)
        return normalized.numpy().astype(np.int64)

    return normalize


def assert_agrees(tile: npt.NDArray[np.uint8], torchstain: Normalize) -> None:
    error = np.abs(estimate(tile).transform.apply(tile) - torchstain(tile))
    assert error.max() <= 1
    assert error.mean() <= 0.01
    assert (error == 0).mean() >= 0.99


@pytest.mark.parametrize("index", range(5))
def test_agrees_on_the_tiles_at_hand(index: int, torchstain: Normalize) -> None:
    tile = dsb_tiles()[index]
    assert estimate(tile).status is StainStatus.OK
    assert_agrees(tile, torchstain)


def test_agrees_on_every_shared_tile(torchstain: Normalize) -> None:
    tiles = shared_tiles()
    sound = [tile for tile in tiles if estimate(tile).status is StainStatus.OK]
    assert len(sound) >= 0.9 * len(tiles)
    for tile in sound:
        assert_agrees(tile, torchstain)


def test_agrees_on_glass_that_has_no_density(torchstain: Normalize) -> None:
    """Level 239 maps to exactly 240 whatever the stains: on such glass one rounding would be every pixel's."""
    tile = np.full((256, 256, 3), 239, np.uint8)
    tile[:80, :192] = dsb_tiles()[0][:80]
    assert estimate(tile).status is StainStatus.OK
    assert_agrees(tile, torchstain)


def test_where_torchstain_paints_we_pass_through(torchstain: Normalize) -> None:
    """3.5% tissue: torchstain repaints the tile from a few pixels' noise, ours is what was seen."""
    tile = dsb_tiles()[5]
    assert estimate(tile).status is StainStatus.FEW_PIXELS
    np.testing.assert_array_equal(estimate(tile).transform.apply(tile), tile)
    assert np.abs(torchstain(tile) - tile.astype(np.int64)).mean() > 20
