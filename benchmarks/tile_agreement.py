"""How much what is found depends on where tiles begin: 1024² windows, the tile grid as it is and shifted.

    python benchmarks/tile_agreement.py PICTURE --mpp 0.499 --at 2400,3800 --at 2400,2400 \
        --out benchmarks/results/tile_agreement.json

PICTURE is what ``unetsharp infer`` reads; ``--at X,Y`` is a window's corner in pixels of 0.25 µm. The shipped network
runs on ONNX Runtime with its own stain normalization (none). Agreement is the share of pixels given the same class,
half a tile of border left out. At an overlap of half a tile a shift by half a tile meets the same tiles again, so its
agreement is 1 by construction; the quarter is what tells something there.
"""

import argparse
import json
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import numpy.typing as npt

from evidence import evidence, write_json
from unetsharp.infer.images import read_picture
from unetsharp.infer.resolution import Scale
from unetsharp.infer.tiling import Grid, blend
from unetsharp_engines.contract import TILE
from unetsharp_engines.runtimes.base import Runtime
from unetsharp_engines.runtimes.onnxruntime import OnnxRuntime
from unetsharp_engines.stain import IDENTITY, StainPlan

SIDE = 1024
OVERLAPS = (TILE // 4, TILE // 2)
SHIFTS = {"half": TILE // 2, "quarter": TILE // 4}


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--mpp", type=float, required=True, help="µm per pixel of the picture")
    parser.add_argument("--at", action="append", required=True, help="X,Y of a window")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    pixels = read_picture(arguments.picture).pixels
    height, width = pixels.shape[:2]
    picture = Scale(height, width, arguments.mpp).to_network(pixels)
    with as_file(files("unetsharp") / "assets" / "edge.onnx") as path, OnnxRuntime(path) as runtime:
        windows = {at: agreements(runtime, window(picture, at)) for at in arguments.at}
    what = "share of pixels of the same class, tile grid as it is and shifted, by overlap in pixels"
    report = {**evidence(what, ("onnxruntime", "numpy"), ("engines", "toolkit")), "windows": windows}
    print(json.dumps(windows, indent=1))
    write_json(arguments.out, report)


def window(picture: npt.NDArray[np.uint8], at: str) -> npt.NDArray[np.uint8]:
    """The 1024² pixels whose first is at ``X,Y``."""
    x, y = map(int, at.split(","))
    cut = picture[y : y + SIDE, x : x + SIDE]
    if cut.shape[:2] != (SIDE, SIDE):
        raise SystemExit(f"--at {at}: the picture has {picture.shape[1]} × {picture.shape[0]} pixels of 0.25 µm")
    return cut


def agreements(runtime: Runtime, picture: npt.NDArray[np.uint8]) -> dict[str, dict[str, float]]:
    """By overlap and shift."""
    found = {}
    for overlap in OVERLAPS:
        as_it_is = classes(runtime, picture, overlap, 0)
        shifted = {name: classes(runtime, picture, overlap, shift) for name, shift in SHIFTS.items()}
        found[str(overlap)] = {name: round(float((as_it_is == other).mean()), 4) for name, other in shifted.items()}
    return found


def classes(runtime: Runtime, picture: npt.NDArray[np.uint8], overlap: int, shift: int) -> npt.NDArray[np.intp]:
    """Most probable channel of each pixel away from the border."""
    grid = Grid.over(picture.shape[:2], tile=TILE, overlap=overlap, shift=shift)
    plan = StainPlan(IDENTITY)
    blended = blend(picture, grid, lambda tiles: runtime.probabilities_of(tiles, plan), batch=8, advance=lambda _: None)
    inner = slice(TILE // 2, -TILE // 2)
    return np.asarray(blended[:, inner, inner].argmax(axis=0))


if __name__ == "__main__":
    main()
