"""Real tiles to measure on: cut from the picture that ships, turned and mirrored."""

from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["real_tiles", "write_pictures"]


def real_tiles(count: int, side: int) -> npt.NDArray[np.uint8]:
    """``count`` tiles, uint8 [count, side, side, 3], ``side`` at most 384; after all eight turns they come again."""
    from PIL import Image

    with as_file(files("unetsharp") / "assets" / "crop.png") as path, Image.open(path) as picture:
        whole = np.asarray(picture.convert("RGB"))
    starts = [(y, x) for y in _starts(whole.shape[0], side) for x in _starts(whole.shape[1], side)]
    tiles = []
    for index in range(count):
        y, x = starts[index % len(starts)]
        turn = index // len(starts)
        tile = np.rot90(whole[y : y + side, x : x + side], turn % 4)
        tiles.append(tile[:, ::-1] if turn // 4 % 2 else tile)
    return np.ascontiguousarray(np.stack(tiles))


def write_pictures(tiles: npt.NDArray[np.uint8], folder: Path) -> list[Path]:
    """One PNG a tile."""
    from PIL import Image

    paths = [folder / f"{index:05}.png" for index in range(len(tiles))]
    for tile, path in zip(tiles, paths, strict=True):
        Image.fromarray(tile).save(path)
    return paths


def _starts(length: int, side: int) -> range:
    """Where tiles begin, half a tile apart."""
    return range(0, length - side + 1, max(1, side // 2))
