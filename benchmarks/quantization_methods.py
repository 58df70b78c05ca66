"""What each calibration method costs a network, as it is and repaired: Dice, agreement, size, time on the CPU.

    python benchmarks/quantization_methods.py PANNUKE [--model FILE.onnx] [--images N]

Calibrates on fold 1, repairs by patches of fold 2, judges by all of fold 3. Latencies are of one 256² tile on two
threads, the networks measured in turn, `ROUNDS` times; the median counts.
"""

import argparse
import json
import statistics
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from evidence import ROOT, evidence
from unetsharp.build.source import Source, read_source
from unetsharp.evaluate.run import stain_as_trained
from unetsharp.quantize.drift import Budget, Drift, HeldOut, tiles_of
from unetsharp.quantize.repair import LayerCost, Trials, cheapest_first, fewest
from unetsharp.quantize.selection import candidates, select
from unetsharp_engines.contract import TILE
from unetsharp_engines.quantization import (
    METHODS,
    Calibration,
    Placement,
    Sensitivity,
    batch_size,
    place,
    quantize,
    threshold,
)
from unetsharp_engines.rewrites.cost import node_costs, total_cost
from unetsharp_engines.rewrites.graph import Graph, name_of
from unetsharp_engines.runtimes.base import network_input
from unetsharp_engines.runtimes.onnxruntime import OnnxRuntime
from unetsharp_engines.stain import IDENTITY, StainPlan
from unetsharp_trainer.data.pannuke import Fold, open_folds

ROUNDS = 15
RESULT = ROOT / "benchmarks" / "results" / "quantization_methods.json"


def main() -> None:
    """Measure and write."""
    arguments = _arguments()
    source, folds = read_source(arguments.model), open_folds(arguments.data)
    placement = place(Graph(source.model))
    calibrating = select(folds[1], candidates(folds[1]), arguments.images)
    calibration = Calibration(source.model, placement.tensors)
    batch = batch_size(source.model, placement.tensors)
    indices = [patch.index for patch in calibrating.patches]
    start = time.perf_counter()
    for first in range(0, len(indices), batch):
        tiles = tiles_of(folds[1], indices[first : first + batch], (TILE, TILE))
        calibration.feed(network_input(tiles, stain_as_trained(source.info)))
    seconds = time.perf_counter() - start
    judging = select(folds[3], candidates(folds[3]), len(folds[3]))
    held_out = HeldOut(source.content, source.info, (TILE, TILE), folds[3], judging)
    repairing = HeldOut(source.content, source.info, (TILE, TILE), folds[2], select(folds[2], candidates(folds[2]), 16))
    networks, rows = {"float32": source.content}, {"float32": {"bytes": len(source.content)}}
    for method in METHODS:
        thresholds = {name: threshold(h, method) for name, h in calibration.histograms.items()}
        networks[method] = quantize(source.model, placement, thresholds).SerializeToString()
        rows[method] = {"bytes": len(networks[method]), **held_out.drift(networks[method]).to_dict()}
        floats = repaired(source, placement, thresholds, folds[1], indices[:8], repairing)
        network = quantize(source.model, placement, thresholds, floats=floats).SerializeToString()
        rows[f"{method}, repaired"] = {
            "bytes": len(network),
            "layers_back_in_float": floats,
            **held_out.drift(network).to_dict(),
        }
        networks[f"{method}, repaired"] = network
        print(method, rows[method], rows[f"{method}, repaired"], flush=True)
    for name, milliseconds in latencies(networks).items():
        rows[name]["milliseconds_a_tile"] = milliseconds
    macs = {name_of(node): cost.macs for node, cost in node_costs(Graph(source.model))}
    result = {
        **evidence(
            "calibration methods, as they are and repaired", ("onnxruntime", "onnx", "numpy"), ("engines", "toolkit")
        ),
        "model": {"name": source.info.name, "encoder": source.info.encoder, "sha256": source.info.weights_sha256},
        "calibration": {
            "fold": 1,
            "images": len(indices),
            "images_sha256": calibrating.sha256,
            "seconds": round(seconds, 1),
        },
        "judged_by": {"fold": 3, "images": len(judging.patches), "images_sha256": judging.sha256},
        "int8_share_of_macs": sum(macs[layer.name] for layer in placement.layers) / sum(macs.values()),
        "methods": rows,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(RESULT.read_text())


def repaired(
    source: Source, placement: Placement, thresholds: dict[str, float], fold: Fold, probed: list[int], judge: HeldOut
) -> list[str]:
    """The layers that the budget of `unetsharp quantize` sends back to float, judged by ``judge``'s patches."""
    probe = Sensitivity(source.model, placement, thresholds)
    for index in probed:
        probe.feed(network_input(tiles_of(fold, [index], (TILE, TILE)), stain_as_trained(source.info)))
    graph = Graph(source.model)
    total, costs = total_cost(graph), {name_of(node): cost for node, cost in node_costs(graph)}
    layers = [
        LayerCost(
            name=name,
            macs=costs[name].macs / total.macs,
            bytes=costs[name].bytes / total.bytes,
            noise_to_signal=noise,
        )
        for name, noise in probe.noise_to_signal().items()
    ]
    order = cheapest_first(layers)

    def measure(floats: int) -> Drift:
        network = quantize(source.model, placement, thresholds, floats=order[:floats])
        return judge.drift(network.SerializeToString())

    trials, budget = Trials(measure), Budget()
    floats = fewest(lambda count: budget.holds(trials(count)), len(order))
    assert floats is not None  # all in float loses nothing
    return order[:floats]


def latencies(networks: dict[str, bytes]) -> dict[str, float]:
    """Median milliseconds of a tile by network, measured in turn."""
    tile = np.random.default_rng(0).integers(0, 256, (1, TILE, TILE, 3), dtype=np.uint8)
    runtimes = {name: OnnxRuntime(content, threads=2) for name, content in networks.items()}
    times: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(ROUNDS):
        for name, runtime in runtimes.items():
            start = time.perf_counter()
            runtime.logits(tile, StainPlan(IDENTITY))
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: round(statistics.median(seen), 1) for name, seen in times.items()}


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, default=Path(str(files("unetsharp") / "assets" / "edge.onnx")))
    parser.add_argument("--images", type=int, default=32)
    return parser.parse_args()


if __name__ == "__main__":
    main()
