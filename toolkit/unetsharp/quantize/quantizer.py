"""``quantize`` as a function: choose patches, calibrate, place INT8, judge, repair, refuse."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetsharp.build.source import Source
from unetsharp.cli.output import Advance, Output
from unetsharp.evaluate.run import stain_as_trained
from unetsharp.own_code import code_sha256
from unetsharp.quantize.drift import Budget, Drift, HeldOut, tiles_of
from unetsharp.quantize.repair import LayerCost, Trials, cheapest_first, fewest
from unetsharp.quantize.selection import Selection, candidates, select, split_folds
from unetsharp.quantize.state import CALIBRATION, TRIALS, state_file
from unetsharp_engines import __version__
from unetsharp_engines.contract import TILE
from unetsharp_engines.errors import GateFailedError, InputError
from unetsharp_engines.model_info import QUANTIZATION_KEY
from unetsharp_engines.quantization import (
    METHODS,
    Calibration,
    Equalization,
    Placement,
    Sensitivity,
    batch_size,
    place,
    place_for_cpu,
    quantize,
)
from unetsharp_engines.quantization import threshold as threshold_of
from unetsharp_engines.rewrites import tuned
from unetsharp_engines.rewrites.cost import Cost, node_costs, total_cost
from unetsharp_engines.rewrites.graph import Graph, name_of
from unetsharp_engines.runtimes.base import network_input
from unetsharp_trainer.data.pannuke import Fold, open_folds

if TYPE_CHECKING:
    import onnx

__all__ = ["QUANTIZATION_KEY", "RUNTIMES", "QuantizeSettings", "Quantized", "quantize_source"]

RUNTIMES = ("tensorrt", "onnxruntime")
"""TensorRT and TensorRT-RTX on a GPU, ONNX Runtime on a CPU."""

MOST_FLOAT = 0.5
"""Share of the multiply-accumulates that repair may give back to float: with more, the network is INT8 in name only."""

_PROBED = 16
"""Patches on which each layer's own noise is measured: sums over all pixels, so few suffice."""

_TOLD = 5
"""Layers named with ``-v``."""

_SAVE_EVERY = 16
"""Batches between two states of calibration on disk."""


@dataclass(frozen=True, kw_only=True)
class QuantizeSettings:
    """How to quantize. Raises InputError for values that cannot be."""

    method: str = "minmax"
    """One of `METHODS`. The default clips nothing, which held best on a tissue that calibration had not seen
    (docs/quantization.md)."""
    images: int = 128
    """Patches to calibrate on, and as many others to judge by."""
    budget: Budget = field(default_factory=Budget)
    runtime: str = "tensorrt"
    """What will run it, of `RUNTIMES`: they compute different things in INT8."""

    def __post_init__(self) -> None:
        """Check."""
        if self.method not in METHODS:
            raise InputError(f"--method {self.method}: wanted one of {', '.join(METHODS)}")
        if self.images < 1:
            raise InputError(f"--images {self.images}: wanted at least 1, such as 128")
        if self.runtime not in RUNTIMES:
            raise InputError(
                f"--runtime {self.runtime}: wanted tensorrt, which serves TensorRT-RTX too, or onnxruntime"
            )


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """An INT8 network within its budget, and how it came to be."""

    content: bytes
    """The ONNX."""
    drift: Drift
    report: dict[str, Any]
    """All that was measured, for JSON."""


def quantize_source(
    source: Source, folder: Path, settings: QuantizeSettings, output: Output, state: Path | None = None
) -> Quantized:
    """Quantize the float network ``source`` on the PanNuke folder ``folder``.

    Calibration and search are kept in files named after ``state``, and taken up again by a later run with the same
    network, patches and settings; once the result is safe, `state.forget` removes them. Raises InputError for a
    network or folder that will not do, GateFailedError where INT8 cannot be had within the budget.
    """
    return _Job(source, folder, settings, output, state).run()


class _Job:
    """One quantization, step by step; each step's result is an attribute of the next."""

    def __init__(
        self, source: Source, folder: Path, settings: QuantizeSettings, output: Output, state: Path | None
    ) -> None:
        self.source, self.settings, self.output = source, settings, output
        self.sides = _sides(source)
        self.model = _as_run_by(settings.runtime, source)
        self.graph = Graph(self.model)
        self.placement: Placement = (place if settings.runtime == "tensorrt" else place_for_cpu)(self.graph)
        if not self.placement.layers:
            raise InputError(f"{source.path}: holds no convolution that INT8 could serve; use it as it is")
        self.fold, self.judging_fold = split_folds(open_folds(folder))
        self.state = state

    def run(self) -> Quantized:
        calibrating, judging = self._select()
        key = self._key(calibrating)
        self.model, spans = self._equalized(calibrating)
        thresholds = self._thresholds(self._calibrated(calibrating, key))
        costs = self._costs(calibrating, thresholds)
        held_out = HeldOut(self.source.content, self.source.info, self.sides, self._fold_of(judging), judging)

        def model(floats: int) -> "onnx.ModelProto":
            return quantize(self.model, self.placement, thresholds, floats=order[:floats])

        def measure(floats: int) -> Drift:
            drift = held_out.drift(model(floats).SerializeToString())
            self.output.say(_line(drift, floats))
            return drift

        order = cheapest_first(costs)
        for name in order[:_TOLD]:
            self.output.detail(f"  first back to float if need be: {name}")
        trials = Trials(measure, self._file(TRIALS), f"{key} {judging.sha256} {self.settings.method}")
        floats = self._search(trials, order, costs)
        report = self._report(calibrating, judging, costs, order[:floats], thresholds, trials) | {"equalized": spans}
        content = _described(model(floats), report)
        return Quantized(content=content, drift=trials(floats), report=report)

    def _select(self) -> tuple[Selection, Selection]:
        count = self.settings.images
        pools = {}
        for fold in {self.fold.number: self.fold, self.judging_fold.number: self.judging_fold}.values():
            with self.output.progress(f"Choosing in fold {fold.number}", total=None, unit="patches") as advance:
                pools[fold.number] = candidates(fold, advance)
        calibrating = select(self.fold, pools[self.fold.number], count)
        taken = {(patch.fold, patch.index) for patch in calibrating.patches}
        rest = [patch for patch in pools[self.judging_fold.number] if (patch.fold, patch.index) not in taken]
        judging = select(self.judging_fold, rest, count)
        self.output.say(
            f"Calibrating on {len(calibrating.patches)} patches of fold {self.fold.number}, "
            f"judging by {len(judging.patches)} of fold {self.judging_fold.number}"
        )
        for kind, counts in calibrating.counts().items():
            self.output.detail(f"  {kind}: {', '.join(f'{name} {count}' for name, count in counts.items())}")
        return calibrating, judging

    def _fold_of(self, selection: Selection) -> Fold:
        return self.fold if selection.patches[0].fold == self.fold.number else self.judging_fold

    def _equalized(self, selection: Selection) -> "tuple[onnx.ModelProto, dict[str, int]]":
        """The same network with channels of like magnitudes, where they were far apart; and how far they were."""
        equalization = Equalization(self.model, [layer.name for layer in self.placement.layers])
        few = _first(selection, _PROBED)
        with self.output.progress("Comparing channels", total=len(few.patches), unit="patches") as advance:
            self._feed(equalization.feed, few, 0, 1, advance)
        model, spans = equalization.apply()
        if spans:
            self.output.say(f"Equalized the channels of {len(spans)} layers, up to 2^{max(spans.values())} apart")
        return model, spans

    def _calibrated(self, selection: Selection, key: str) -> Calibration:
        calibration = Calibration(self.model, self.placement.tensors)
        batch = batch_size(self.model, self.placement.tensors)
        if (path := self._file(CALIBRATION)) and calibration.restore(path, key):
            self.output.say(f"Taking up calibration after {calibration.images} patches")
        with self.output.progress("Calibrating", total=len(selection.patches), unit="patches") as advance:
            advance(calibration.images)
            self._feed(calibration.feed, selection, calibration.images, batch, advance, self._saving(calibration, key))
        return calibration

    def _saving(self, calibration: Calibration, key: str) -> Callable[[int], None]:
        def save(batches: int) -> None:
            if (path := self._file(CALIBRATION)) and batches % _SAVE_EVERY == 0:
                calibration.save(path, key)

        return save

    def _feed(
        self,
        feed: Callable[[Any], None],
        selection: Selection,
        start: int,
        batch: int,
        advance: Advance,
        after: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Give ``feed`` the patches from ``start`` on as the network will see them."""
        plan = stain_as_trained(self.source.info)
        indices = [patch.index for patch in selection.patches]
        for number, first in enumerate(range(start, len(indices), batch), 1):
            tiles = tiles_of(self.fold, indices[first : first + batch], self.sides)
            feed(network_input(tiles, plan))
            after(number)
            advance(len(tiles))

    def _thresholds(self, calibration: Calibration) -> dict[str, float]:
        return {name: threshold_of(h, self.settings.method) for name, h in calibration.histograms.items()}

    def _costs(self, selection: Selection, thresholds: dict[str, float]) -> list[LayerCost]:
        """What each layer costs, and what INT8 costs it, on the first patches."""
        probe = Sensitivity(self.model, self.placement, thresholds)
        few = _first(selection, _PROBED)
        with self.output.progress("Measuring layers", total=len(few.patches), unit="patches") as advance:
            self._feed(probe.feed, few, 0, 1, advance)
        noise, total = probe.noise_to_signal(), total_cost(self.graph)
        costs = {name_of(node): cost for node, cost in node_costs(self.graph)}
        return [_cost(layer.name, costs[layer.name], total, noise[layer.name]) for layer in self.placement.layers]

    def _search(self, trials: Trials, order: list[str], costs: list[LayerCost]) -> int:
        budget = self.settings.budget
        most = _most(order, costs)
        floats = fewest(lambda count: budget.holds(trials(count)), most)
        if floats is None:
            raise GateFailedError(self._refusal(trials(0), most, trials(most)))
        return floats

    def _refusal(self, plain: Drift, most: int, repaired: Drift) -> str:
        budget = self.settings.budget
        return (
            f"{self.source.path}: INT8 loses {plain.dice_drop:.2%} of foreground Dice and changes "
            f"{1 - plain.agreement:.2%} of pixels on {plain.images} patches; with {most} layers "
            f"back in float still {repaired.dice_drop:.2%} and {1 - repaired.agreement:.2%}; allowed are "
            f"{budget.max_dice_drop:.2%} and {1 - budget.min_agreement:.2%}. Nothing was written: allow more, "
            f"calibrate otherwise (--method, --images), or build with --fp16"
        )

    def _report(
        self,
        calibrating: Selection,
        judging: Selection,
        costs: list[LayerCost],
        floats: list[str],
        thresholds: dict[str, float],
        trials: Trials,
    ) -> dict[str, Any]:
        origin = {layer.name: layer.scale_of for layer in self.placement.layers}
        macs = {name_of(node): cost.macs for node, cost in node_costs(self.graph)}
        in_int8 = sum(macs[c.name] for c in costs if c.name not in floats)
        return {
            "tool_version": __version__,
            "float_sha256": hashlib.sha256(self.source.content).hexdigest(),
            "runtime": self.settings.runtime,
            "method": self.settings.method,
            "calibration": _selection_record(calibrating),
            "judged_by": _selection_record(judging),
            "budget": {
                "max_dice_drop": self.settings.budget.max_dice_drop,
                "min_agreement": self.settings.budget.min_agreement,
            },
            "drift": trials(len(floats)).to_dict(),
            "trials": {str(n): drift.to_dict() for n, drift in sorted(trials.drifts.items())},
            "int8_share_of_macs": in_int8 / sum(macs.values()),
            "float_share_of_macs": self._float_shares(macs, floats),
            "layers": [
                {
                    "name": cost.name,
                    "precision": "float" if cost.name in floats else "int8",
                    "share_of_macs": cost.macs,
                    "share_of_bytes": cost.bytes,
                    "sqnr_db": cost.sqnr_db,
                    "threshold": thresholds[origin[cost.name]],
                }
                for cost in costs
            ],
            "float_by_rule": [{"name": x.name, "reason": x.reason} for x in self.placement.floats],
        }

    def _float_shares(self, macs: dict[str, int], floats: list[str]) -> dict[str, float]:
        """Of the multiply-accumulates that stay float, by reason; products of matrices are what rewrites made."""
        shares: Counter[str] = Counter()
        reasons = {layer.name: layer.reason for layer in self.placement.floats} | dict.fromkeys(floats, "repair")
        in_int8 = {layer.name for layer in self.placement.layers} - set(floats)
        for name, count in macs.items():
            if name not in in_int8 and count:
                shares[reasons.get(name, "matrix products")] += count
        return {reason: count / sum(macs.values()) for reason, count in shares.most_common()}

    def _key(self, selection: Selection) -> str:
        source = hashlib.sha256(self.source.content).hexdigest()
        return f"{source} {selection.sha256} {self.settings.runtime} {code_sha256()}"

    def _file(self, suffix: str) -> Path | None:
        return None if self.state is None else state_file(self.state, suffix)


def _as_run_by(runtime: str, source: Source) -> "onnx.ModelProto":
    """The float network as ``runtime`` would have it: ONNX Runtime applies rewrites of its own when it loads a file."""
    return source.model if runtime == "tensorrt" else tuned(runtime, source.model)


def _first(selection: Selection, count: int) -> Selection:
    return Selection(patches=selection.patches[:count], sha256=selection.sha256)


def _sides(source: Source) -> tuple[int, int]:
    """Height and width that the network takes. Raises InputError for a network that PanNuke patches do not fit."""
    if source.precision != "fp32":
        raise InputError(f"{source.path}: is {source.precision} already; INT8 is made from the fp32 export")
    batch, _, *sides = source.input_shape
    if batch is not None:
        raise InputError(f"{source.path}: exported for batches of {batch}; give an export of any batch size")
    height, width = (side or source.info.tile for side in sides)
    if max(height, width) > TILE:
        raise InputError(
            f"{source.path}: takes {height}×{width} pixels, and PanNuke's patches are {TILE}×{TILE}: "
            f"export with --size {TILE}"
        )
    return height, width


def _cost(name: str, cost: Cost, total: Cost, noise: float) -> LayerCost:
    return LayerCost(name=name, macs=cost.macs / total.macs, bytes=cost.bytes / total.bytes, noise_to_signal=noise)


def _most(order: list[str], costs: list[LayerCost]) -> int:
    """How many layers from the start of ``order`` repair may give back: not all of them."""
    share = {cost.name: cost.macs for cost in costs}
    spent = 0.0
    for count, name in enumerate(order[:-1]):
        spent += share[name]
        if spent > MOST_FLOAT:
            return count
    return len(order) - 1


def _line(drift: Drift, floats: int) -> str:
    given_back = f"{floats} layer{'s' if floats > 1 else ''} back in float: " if floats else "INT8: "
    return (
        f"{given_back}foreground Dice {drift.int8_dice:.4f}, float {drift.float_dice:.4f} "
        f"({-drift.dice_drop:+.3%}); {drift.agreement:.3%} of pixels keep their class"
    )


def _selection_record(selection: Selection) -> dict[str, Any]:
    return {
        "images": len(selection.patches),
        "images_sha256": selection.sha256,
        **selection.counts(),
        "patches": [[patch.fold, patch.index] for patch in selection.patches],
    }


def _folds(selection: dict[str, Any]) -> list[int]:
    return sorted({fold for fold, _ in selection["patches"]})


def _described(model: "onnx.ModelProto", report: dict[str, Any]) -> bytes:
    """The model's bytes, with what matters of ``report`` in its metadata."""
    import onnx

    keys = ("float_sha256", "runtime", "method", "drift", "int8_share_of_macs")
    short = {
        **{key: report[key] for key in keys},
        "images": report["calibration"]["images"],
        "images_sha256": report["calibration"]["images_sha256"],
        "calibration_folds": _folds(report["calibration"]),
        "judged_by_folds": _folds(report["judged_by"]),
        "float_layers": [layer["name"] for layer in report["layers"] if layer["precision"] == "float"],
    }
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**metadata, QUANTIZATION_KEY: json.dumps(short, sort_keys=True)})
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())
