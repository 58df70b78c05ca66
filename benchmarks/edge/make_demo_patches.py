"""Write the labelled patches that ship with the demo: six of DSB 2018 (CC0) that the edge weights never saw.

    python benchmarks/edge/make_demo_patches.py OPEN_DATA

OPEN_DATA is what ``make_open_data.py`` wrote. Of its held-out fold 3 six DSB patches go, in two rows of three, into
``labelled.jpg`` (recompressed) and ``labelled_nuclei.png`` (white where a nucleus is), both in the package's assets.
"""

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ASSETS = Path(__file__).parents[2] / "toolkit/unetsharp/assets"

CHOSEN = (
    "2246874c8b5ba218d01ad8153a201ad4660195f3e4c65da6b9d4ccaf82cb7edf",
    "3bfa8b3b01fd24a28477f103063d17368a7398b27331e020f3a0ef59bf68c940",
    "708eb41a3fc8f2b6cd1f529cdf38dc4ad5d5f00ad30bdcba92884f37ff78d614",
    "5d75a63972ef643efd7c42f20668b167f2af43635d6263962d84e62e7609ab51",
    "cbca32daaae36a872a11da4eaff65d1068ff3f154eedc9d3fc0c214a4e5d32bd",
    "353ab00e964f71aa720385223a9078b770b7e3efaf5be0f66e670981f68fe606",
)
"""Source images, in the sheet's reading order: many nuclei, both of DSB's stains."""


def main(data: Path) -> None:
    """Cut, lay out, write."""
    with (data / "split.csv").open(newline="") as file:
        index = {row["source_image"]: int(row["index"]) for row in csv.DictReader(file) if row["fold"] == "3"}
    images = np.load(data / "Fold 3/images/fold3/images.npy", mmap_mode="r")
    nuclei = np.load(data / "Fold 3/ignore.npy", mmap_mode="r")
    places = [index[name] for name in CHOSEN]
    Image.fromarray(sheet([images[i] for i in places])).save(ASSETS / "labelled.jpg", quality=88, optimize=True)
    mask = sheet([nuclei[i] for i in places])
    Image.fromarray(mask).convert("1").save(ASSETS / "labelled_nuclei.png", optimize=True)


def sheet(patches: list[np.ndarray]) -> np.ndarray:
    """Two rows of three."""
    return np.concatenate([np.concatenate(patches[row : row + 3], axis=1) for row in (0, 3)])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
