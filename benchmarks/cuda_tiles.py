"""Tiles to try the CUDA kernels on: real ones, varied in colour, and hostile ones."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["hostile_tiles", "varied_tiles"]

SIDE = 256
SHEET = Path(__file__).parents[1] / "tests" / "data" / "dsb_tiles.png"  # six tiles of 192 px, three a row


def varied_tiles(files: Iterable[Path], count: int) -> npt.NDArray[np.uint8]:
    """``count`` real tiles, uint8 [count, 256, 256, 3]: those of ``files`` (arrays ``images``) and the repository's.

    Where they are fewer they come again, flipped and with each channel's light changed.
    """
    real = np.concatenate([_repository_tiles(), *(np.load(file)["images"] for file in files)])
    rng = np.random.default_rng(0)
    return np.stack([_varied(real[i % len(real)], i // len(real), rng) for i in range(count)])


def hostile_tiles() -> npt.NDArray[np.uint8]:
    """Tiles that carry no stains, or hardly: uint8 [N, 256, 256, 3]."""
    rng = np.random.default_rng(7)
    real = _repository_tiles()[0]
    pen = real.copy()
    pen[64:192, 64:192] = (20, 90, 30)
    mostly_pen = np.full_like(real, (20, 90, 30))
    mostly_pen[:64] = real[:64]
    little = np.full_like(real, 243)
    little[:26, :26] = real[:26, :26]  # 1%
    edge_of_few = np.full_like(real, 243)
    edge_of_few[:58, :58] = (120, 60, 140)  # 5.1%, of one colour
    ramp = np.linspace(0, 255, SIDE).astype(np.uint8)
    grey = np.broadcast_to(ramp[None, :, None], real.shape)
    noise = rng.integers(0, 256, real.shape, np.uint8)
    dark_noise = rng.integers(0, 40, real.shape, np.uint8)
    one_stain = np.stack([255 * np.exp(-ramp / 200.0 * k) for k in (0.6, 0.7, 0.4)], axis=-1)
    plains = [np.full_like(real, level) for level in (0, 1, 127, 239, 240, 255)]
    colours = [np.full_like(real, colour) for colour in ((120, 60, 140), (255, 0, 0), (0, 0, 255))]
    return np.stack([*plains, *colours, pen, mostly_pen, little, edge_of_few, grey, noise, dark_noise,
                     np.broadcast_to(one_stain.astype(np.uint8), real.shape), real // 8, 255 - real // 16])  # fmt: skip


def _repository_tiles() -> npt.NDArray[np.uint8]:
    sheet = np.asarray(Image.open(SHEET))
    tiles = sheet.reshape(2, 192, 3, 192, 3).transpose(0, 2, 1, 3, 4).reshape(6, 192, 192, 3)
    return np.pad(tiles, ((0, 0), (0, SIDE - 192), (0, SIDE - 192), (0, 0)), mode="symmetric")


def _varied(tile: npt.NDArray[np.uint8], turn: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    if turn == 0:
        return tile
    light = rng.uniform(0.75, 1.1, 3)
    flipped = tile[::-1] if turn % 2 else tile[:, ::-1]
    return np.clip(flipped * light, 0, 255).astype(np.uint8)
