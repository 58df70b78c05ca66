"""Memory that streaming calibration needs, however many images: peak resident size of the process as it goes.

    python benchmarks/calibration_memory.py PANNUKE MODEL.onnx [--images 512] [--threads 1]

Real patches, all folds of a PanNuke folder; where they are fewer than asked for, turned and mirrored ones follow.
The steps are those of ``unetsharp quantize``: histograms of every quantized tensor over all images, saved now and then
and taken up again when the run was interrupted, then each layer's own noise on 16 of them.
"""

import argparse
import json
import os
import resource
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evidence import ROOT, evidence, write_json
from unetsharp.build.source import read_source
from unetsharp.evaluate.run import stain_as_trained
from unetsharp_engines.files import replacing
from unetsharp_engines.quantization import Calibration, Sensitivity, batch_size, place, threshold
from unetsharp_engines.rewrites.graph import Graph
from unetsharp_engines.runtimes.base import network_input
from unetsharp_trainer.data.pannuke import Fold, open_folds

RESULT = ROOT / "benchmarks" / "results" / "calibration_memory.json"
PROBED = 16
SAVE_EVERY = 4
"""Batches."""

Patch = npt.NDArray[np.uint8]


def main() -> None:
    """Measure and write."""
    arguments = _arguments()
    start = evidence("memory of calibration", ("onnxruntime", "onnx", "numpy"), ("engines", "toolkit"))
    source = read_source(arguments.model)
    placement = place(Graph(source.model))
    calibration = Calibration(source.model, placement.tensors, threads=arguments.threads)
    batch = batch_size(source.model, placement.tensors)
    state = arguments.state
    calibration.restore(state, str(arguments.images))
    log = json.loads(state.with_suffix(".json").read_text()) if calibration.images else []
    plan = stain_as_trained(source.info)
    begun = time.perf_counter() - (log[-1]["seconds"] if log else 0.0)
    patches = islice(turned(list(open_folds(arguments.data).values())), calibration.images, arguments.images)
    while tiles := list(islice(patches, batch)):
        calibration.feed(network_input(np.stack(tiles), plan))
        log.append({"images": calibration.images, "seconds": time.perf_counter() - begun, "peak_gb": peak_gb()})
        if len(log) % SAVE_EVERY == 0 or calibration.images == arguments.images:
            calibration.save(state, str(arguments.images))
            with replacing(state.with_suffix(".json")) as temporary:
                temporary.write_text(json.dumps(log))
            print(log[-1], flush=True)
    thresholds = {name: threshold(h, "minmax") for name, h in calibration.histograms.items()}
    del calibration
    probe = Sensitivity(source.model, placement, thresholds, threads=arguments.threads)
    for patch in islice(turned(list(open_folds(arguments.data).values())), PROBED):
        probe.feed(network_input(patch[None], plan))
    result = {
        **start,
        "load_average_after": round(os.getloadavg()[0], 1),
        "model": {"encoder": source.info.encoder, "width": source.info.width, "input": source.input_shape[1:]},
        "threads": arguments.threads,
        "tensors": len(placement.tensors),
        "histograms_mb": round(65536 * len(placement.tensors) / 1e6, 1),
        "images": arguments.images,
        "images_at_once": batch,
        "seconds": round(log[-1]["seconds"], 1),
        "peak_gb_by_images": {entry["images"]: round(entry["peak_gb"], 2) for entry in sparse(log)},
        "peak_gb": round(max(entry["peak_gb"] for entry in log), 2),
        "peak_gb_with_the_layers_noise": round(peak_gb(), 2),
    }
    write_json(RESULT, result)
    print(RESULT.read_text())


def turned(folds: list[Fold]) -> Iterator[Patch]:
    """Every patch of ``folds``, then every patch in each of the seven other ways to turn and mirror it."""
    for way in range(8):
        for fold in folds:
            for index in range(len(fold)):
                patch = np.rot90(fold.image(index), way % 4)
                yield np.ascontiguousarray(patch[::-1] if way >= 4 else patch)


def sparse(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries nearest behind 1, 2, 4, 8, … images, and the last."""
    marks = [2**power for power in range(20)]
    first = {mark: next((entry for entry in log if entry["images"] >= mark), log[-1]) for mark in marks}
    return list({entry["images"]: entry for entry in first.values()}.values())


def peak_gb() -> float:
    """Largest resident size of this process so far, in 10⁹ bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="PanNuke folder")
    parser.add_argument("model", type=Path, help="fp32 ONNX that `unetsharp export` wrote")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--state", type=Path, default=Path("calibration_memory.npz"), help="what an interrupted run left"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
