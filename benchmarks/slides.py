"""Time and memory of ``unetsharp infer`` on whole slides, with the network that ships, and that a slide is its picture.

    python benchmarks/slides.py CMU-1-Small-Region.svs --out benchmarks/results/slides.json

Runs of the installed command, each a process of its own: the slide as it is; the slide and a PNG of it with
tiles that do not overlap, whose nuclei are compared point for point; and a slide of `CANVAS` pixels of glass, a TIFF
in JPEG tiles without a pyramid, that shows the slide twice, at 0.25 µm per pixel.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from evidence import evidence, write_json
from unetsharp.infer.images import open_slide
from unetsharp_engines.contract import MPP

CANVAS = (18_000, 24_000)
PLACES = ((3_000, 4_000), (9_000, 16_000))
"""Row and column of the slide's corner on the canvas."""
GLASS = 243
TILE = 512
NO_OVERLAP = ("--overlap", "0")

Pixels = npt.NDArray[np.uint8]


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = measure(arguments.slide, Path(folder))
    report = {**evidence(__doc__.split("\n")[0], ("onnxruntime", "numpy", "tifffile"), ("engines", "toolkit")), **runs}
    print(json.dumps(runs, indent=1))
    write_json(arguments.out, report)


def measure(path: Path, folder: Path) -> dict[str, Any]:
    """All runs, by name."""
    pixels, mpp = picture_of(path)
    Image.fromarray(pixels).save(folder / "picture.png")
    write_canvas(pixels, mpp, folder / "canvas.tif")
    found = {
        "slide": infer(path, folder / "slide"),
        "slide, no overlap": infer(path, folder / "parts", *NO_OVERLAP),
        "its picture, no overlap": infer(folder / "picture.png", folder / "whole", *NO_OVERLAP, "--mpp", str(mpp)),
        "canvas, no overlap": infer(folder / "canvas.tif", folder / "canvas", *NO_OVERLAP),
    }
    same = outlines(folder / "parts") == outlines(folder / "whole")
    return {"runs": found, "slide_and_its_picture_have_the_same_nuclei": same}


def picture_of(path: Path) -> tuple[Pixels, float]:
    """The slide's pixels and µm per pixel."""
    slide = open_slide(path)
    if slide is None or slide.mpp is None:
        raise SystemExit(f"{path}: no slide that states its resolution")
    with slide:
        return slide.read(0, 0, slide.height, slide.width), slide.mpp


def write_canvas(pixels: Pixels, mpp: float, path: Path) -> None:
    """The large slide."""
    size = tuple(round(side * mpp / MPP) for side in pixels.shape[:2])
    shown = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC))
    per_cm = 1e4 / MPP
    tifffile.imwrite(
        path, canvas_tiles(shown), shape=(*CANVAS, 3), dtype=np.uint8, tile=(TILE, TILE), photometric="rgb",
        compression="jpeg", resolution=(per_cm, per_cm), resolutionunit="CENTIMETER",
    )  # fmt: skip


def canvas_tiles(shown: Pixels) -> Iterator[Pixels]:
    """Row by row."""
    for top in range(0, CANVAS[0], TILE):
        band = np.full((TILE, -(-CANVAS[1] // TILE) * TILE, 3), GLASS, np.uint8)
        for row, column in PLACES:
            first, last = max(top, row), min(top + TILE, row + shown.shape[0])
            if first < last:
                band[first - top : last - top, column : column + shown.shape[1]] = shown[first - row : last - row]
        yield from (np.ascontiguousarray(band[:, left : left + TILE]) for left in range(0, band.shape[1], TILE))


def infer(path: Path, out: Path, *options: str) -> dict[str, Any]:
    """One run of the command: what it took and what it found."""
    program = str(Path(sys.executable).with_name("unetsharp"))
    start = time.perf_counter()
    process = subprocess.Popen([program, "infer", str(path), "-o", str(out), "-q", *options], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    if status != 0:
        raise SystemExit(f"infer {path} ended with status {status}")
    (picture,) = json.loads((out / "run.json").read_text(encoding="utf-8"))["pictures"]
    return {
        "width": picture["width"],
        "height": picture["height"],
        "mpp": picture["mpp"],
        "nuclei": sum(picture["counts"].values()),
        "wall_s": round(wall, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_mb": round(usage.ru_maxrss * 1024 / 1e6),
        "stages_s": picture["seconds"],
    }


def outlines(folder: Path) -> list[str]:
    """Geometry and properties of each nucleus, sorted."""
    (path,) = folder.glob("*.geojson")
    features = json.loads(path.read_text(encoding="ascii"))["features"]
    return sorted(json.dumps([feature["geometry"], feature["properties"]]) for feature in features)


if __name__ == "__main__":
    main()
