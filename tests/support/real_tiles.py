"""Real H&E tiles: six that the repository carries, and hundreds where the shared data is at hand."""

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

TESTS = Path(__file__).parents[1]
SHARED = Path(os.environ.get("UNETSHARP_SHARED", TESTS.parents[1] / "shared"))


def dsb_tiles() -> npt.NDArray[np.uint8]:
    """The six tiles of ``data/dsb_tiles.png``, uint8 [6, 192, 192, 3]; the last is all but empty."""
    sheet = np.asarray(Image.open(TESTS / "data" / "dsb_tiles.png"))
    return sheet.reshape(2, 192, 3, 192, 3).transpose(0, 2, 1, 3, 4).reshape(6, 192, 192, 3)


def shared_tiles() -> npt.NDArray[np.uint8]:
    """All 256² tiles of the shared data, uint8 [N, 256, 256, 3]. Skips the test where they are not at hand."""
    files = [*sorted(SHARED.glob("data/pannuke_mini/fold*.npz")), *SHARED.glob("data/dsb_nuclei/dsb.npz")]
    if len(files) < 4:
        pytest.skip(f"no tiles under {SHARED}/data; set UNETSHARP_SHARED to where they are")
    return np.concatenate([np.load(file)["images"] for file in files])
