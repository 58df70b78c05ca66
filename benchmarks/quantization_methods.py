"""What each calibration method costs a network, as it is and repaired: Dice, agreement, size, time on the CPU.

    python benchmarks/quantization_methods.py PANNUKE [--weights FILE] [--images N] [--methods …] [--out FILE]

Exports the weights without the head's tail, as GPU engines take them. Calibrates on fold 1, repairs by patches of
fold 2 within the budget of ``unetsharp quantize``, and judges once by all of fold 3: placed for TensorRT, and for ONNX
Runtime on a CPU. Times are of one 256² tile on two threads, the networks measured in turn, `ROUNDS` times; where a
TensorRT placement is timed on the CPU, that says why it is not for the CPU.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from evidence import ROOT, evidence, write_json
from unetsharp.build.source import Source, read_source
from unetsharp.cli.output import Output, Verbosity
from unetsharp.evaluate.run import stain_as_trained
from unetsharp.export.exporter import ExportSettings, export_onnx
from unetsharp.quantize.drift import Budget, Drift, HeldOut, tiles_of
from unetsharp.quantize.repair import LayerCost, Trials, cheapest_first, fewest
from unetsharp.quantize.selection import Selection, candidates, select
from unetsharp_engines.contract import TILE
from unetsharp_engines.quantization import (
    METHODS,
    Calibration,
    Placement,
    Sensitivity,
    place,
    place_for_cpu,
    quantize,
    threshold,
)
from unetsharp_engines.rewrites import tuned
from unetsharp_engines.rewrites.cost import node_costs, total_cost
from unetsharp_engines.rewrites.graph import Graph, name_of
from unetsharp_engines.runtimes.base import network_input
from unetsharp_engines.runtimes.onnxruntime import OnnxRuntime
from unetsharp_engines.stain import IDENTITY, StainPlan
from unetsharp_trainer.data.pannuke import Fold, open_folds

ROUNDS = 9
PROBED = 8
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One placement, and the float network that it is applied to."""

    model: onnx.ModelProto
    placement: Placement

    def float_share(self, floats: list[str]) -> float:
        """Of the multiply-accumulates, with ``floats`` back in float."""
        macs = {name_of(node): cost.macs for node, cost in node_costs(Graph(self.model))}
        return 1 - sum(macs[layer.name] for layer in self.placement.layers if layer.name not in floats) / sum(
            macs.values()
        )


def main() -> None:
    """Measure and write."""
    arguments = _arguments()
    start = evidence("calibration methods, as they are and repaired", ("onnxruntime", "onnx"), ("engines", "toolkit"))
    source, folds = exported(arguments.weights), open_folds(arguments.data)
    chosen = {1: select(folds[1], candidates(folds[1]), arguments.images)}
    chosen[2] = select(folds[2], candidates(folds[2]), arguments.images)
    chosen[3] = select(folds[3], candidates(folds[3]), len(folds[3]))
    judges = {k: HeldOut(source.content, source.info, (TILE, TILE), folds[k], chosen[k]) for k in (2, 3)}
    pictures = [patch.index for patch in chosen[1].patches]
    networks = {"float32": source.content}
    rows: dict[str, dict[str, Any]] = {"float32": {"bytes": len(source.content)}}
    for runtime in arguments.runtimes:
        recipe = recipe_for(runtime, source)
        calibration = calibrated(recipe, source, folds[1], pictures)
        for method in arguments.methods:
            thresholds = {name: threshold(h, method) for name, h in calibration.histograms.items()}
            repair = repaired(recipe, source, thresholds, folds[1], pictures[:PROBED], judges[2])
            for how, floats in (("as it is", []), ("repaired", repair)):
                name = f"{runtime}, {method}, {how}"
                networks[name] = quantize(recipe.model, recipe.placement, thresholds, floats=floats).SerializeToString()
                rows[name] = row(networks[name], judges[3].drift(networks[name]), recipe, floats)
                print(name, rows[name], flush=True)
                write(arguments, start, source, chosen, rows)
    for name, milliseconds in latencies(networks).items():
        rows[name]["milliseconds_a_tile_on_the_cpu"] = milliseconds
    write(arguments, start, source, chosen, rows)


def write(
    arguments: argparse.Namespace,
    start: dict[str, Any],
    source: Source,
    chosen: dict[int, Selection],
    rows: dict[str, dict[str, Any]],
) -> None:
    """What is known so far."""
    info = source.info
    result = {
        **start,
        "load_average_after": round(os.getloadavg()[0], 1),
        "model": {
            "name": info.name,
            "encoder": info.encoder,
            "width": info.width,
            "weights_sha256": info.weights_sha256,
        },
        "patches": {k: {"images": len(s.patches), "sha256": s.sha256} for k, s in chosen.items()},
        "methods": rows,
    }
    write_json(RESULTS / arguments.out, result)


def exported(weights: Path) -> Source:
    """The network of ``weights`` as ONNX, without the head's tail."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(weights, path, ExportSettings(tail_less=True), Output(verbosity=Verbosity.QUIET))
        return read_source(path)


def recipe_for(runtime: str, source: Source) -> Recipe:
    """The placement of ``unetsharp quantize --runtime``."""
    if runtime == "tensorrt":
        return Recipe(model=source.model, placement=place(Graph(source.model)))
    model = tuned(runtime, source.model)
    return Recipe(model=model, placement=place_for_cpu(Graph(model)))


def calibrated(recipe: Recipe, source: Source, fold: Fold, indices: list[int]) -> Calibration:
    """Histograms of the patches ``indices``."""
    calibration = Calibration(recipe.model, recipe.placement.tensors)
    for x_NCHW in pictures_of(source, fold, indices):
        calibration.feed(x_NCHW)
    return calibration


def pictures_of(source: Source, fold: Fold, indices: list[int]) -> Iterator[Any]:
    """One by one, as the network sees them."""
    plan = stain_as_trained(source.info)
    return (network_input(tiles_of(fold, [index], (TILE, TILE)), plan) for index in indices)


def repaired(
    recipe: Recipe, source: Source, thresholds: dict[str, float], fold: Fold, probed: list[int], judge: HeldOut
) -> list[str]:
    """The layers that the budget of `unetsharp quantize` sends back to float, judged by ``judge``'s patches."""
    probe = Sensitivity(recipe.model, recipe.placement, thresholds)
    for x_NCHW in pictures_of(source, fold, probed):
        probe.feed(x_NCHW)
    order = cheapest_first(layer_costs(recipe, probe.noise_to_signal()))

    def measure(floats: int) -> Drift:
        network = quantize(recipe.model, recipe.placement, thresholds, floats=order[:floats])
        return judge.drift(network.SerializeToString())

    trials, budget = Trials(measure), Budget()
    floats = fewest(lambda count: budget.holds(trials(count)), len(order))
    assert floats is not None  # all in float loses nothing
    return order[:floats]


def layer_costs(recipe: Recipe, noise: dict[str, float]) -> list[LayerCost]:
    """What each layer costs, and what INT8 costs it."""
    graph = Graph(recipe.model)
    total, costs = total_cost(graph), {name_of(node): cost for node, cost in node_costs(graph)}
    return [
        LayerCost(
            name=name,
            macs=costs[name].macs / total.macs,
            bytes=costs[name].bytes / total.bytes,
            noise_to_signal=ratio,
        )
        for name, ratio in noise.items()
    ]


def row(network: bytes, drift: Drift, recipe: Recipe, floats: list[str]) -> dict[str, Any]:
    """One line of the table."""
    return {
        "bytes": len(network),
        **{key: round(value, 5) for key, value in drift.to_dict().items()},
        "float_share_of_macs": round(recipe.float_share(floats), 4),
        "layers_back_in_float": floats,
    }


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
    parser.add_argument("--weights", type=Path, default=Path(str(files("unetsharp") / "assets" / "edge.safetensors")))
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--runtimes", nargs="*", default=["tensorrt", "onnxruntime"])
    parser.add_argument("--out", default="quantization_methods.json", help="name under results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
