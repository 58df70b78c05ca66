"""FP16 with care: what float16 would spoil stays in float32, found by measuring, and told."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from unetsharp.evaluate.run import stain_as_trained
from unetsharp.export.comparison import sample_tiles
from unetsharp.export.precision import precision_of, settled, to_fp16
from unetsharp.quantize.drift import tiles_of
from unetsharp.quantize.repair import fewest
from unetsharp.quantize.selection import candidates, select, split_folds
from unetsharp_engines.contract import INPUT_NAME, TILE
from unetsharp_engines.errors import GateFailedError, InputError
from unetsharp_engines.model_info import ModelInfo
from unetsharp_engines.quantization.calibration import session
from unetsharp_engines.quantization.float16 import FLOAT16_MAX, FLOAT16_NORMAL, Float16Scan, Range, blocks
from unetsharp_engines.quantization.rounding import spelled_out
from unetsharp_engines.rewrites import TAIL_KEY, HeadTail, finish
from unetsharp_engines.rewrites.cost import node_costs
from unetsharp_engines.rewrites.graph import Graph, name_of
from unetsharp_engines.runtimes.base import network_input
from unetsharp_engines.stain import IDENTITY, StainPlan, estimate
from unetsharp_trainer.data.pannuke import open_folds

__all__ = [
    "Bounds",
    "HalfReport",
    "HalfWeights",
    "calibration_pictures",
    "careful_fp16",
    "for_strong_typing",
    "sample_pictures",
]

_HEADROOM = 2.0
"""Other pictures may reach this times what the scanned ones did."""

_MOST = 0.5
"""Share of the multiply-accumulates that may stay in float32: with more, the network is FP16 in name only."""

_PATCHES = 32

_NEAR = 16.0
"""A tensor is told of from this share of float16's range on."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What FP16 may change of float32's logits."""

    max_difference: float = 0.02
    """Largest |Δlogit|, as a share of the largest |logit|, or as it is where no logit exceeds 1."""
    agreement: float = 0.999
    """Least share of pixels that keep their class."""


_INT8_BOUNDS = Bounds(max_difference=0.1, agreement=0.995)
"""Of an INT8 network whose rest becomes float16: a last digit more or less turns INT8 levels, each a whole step."""


@dataclass(frozen=True, kw_only=True)
class HalfWeights:
    """What float16 does to the weights."""

    coarse: int
    """Below float16's smallest number of full precision: rounded more coarsely."""
    zeroed: int
    """Of these, rounded to zero."""
    too_large: tuple[str, ...]
    """Weights, by name, that hold numbers beyond float16: their nodes stay in float32."""


@dataclass(frozen=True, kw_only=True)
class HalfReport:
    """How a network was brought to float16, and what it lost on the pictures it was measured on."""

    pictures: int
    max_difference: float
    """Largest |Δlogit| from the float32 ONNX, as `Bounds` counts it."""
    agreement: float
    plain_max_difference: float
    """The same with everything in float16; infinite or not a number where that overflows."""
    plain_agreement: float
    islands: tuple[str, ...]
    """Blocks that stay in float32, each named after its convolution."""
    blocks: int
    """Of which these are."""
    float32_share_of_macs: float
    near_overflow: dict[str, float]
    """Largest |x| of tensors that reach a sixteenth of float16's range or more."""
    mostly_small: dict[str, float]
    """Share of values below float16's full precision, of convolutions' outputs where it is over a half."""
    weights: HalfWeights

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def for_strong_typing(model: onnx.ModelProto, info: ModelInfo) -> onnx.ModelProto:
    """What a strongly typed TensorRT is given for FP16 or INT8: no tensor in float32 that need not be.

    A float32 network comes as `careful_fp16` gives it by `sample_pictures`; an INT8 one with everything in float16 but
    its INT8 layers, see `to_fp16`; an FP16 one as it is. Raises as `careful_fp16`.
    """
    precision = precision_of(model)
    if precision == "fp16":
        return model
    bounds = Bounds() if precision == "fp32" else _INT8_BOUNDS
    return careful_fp16(model, sample_pictures(model, info), bounds)[0]


def sample_pictures(model: onnx.ModelProto, info: ModelInfo) -> list[npt.NDArray[np.float32]]:
    """The three tiles that export compares on, of a real slide, as ``model`` takes them: each fills a batch."""
    batch, _, *sides = (d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)  # 0 is free
    height, width = (side or info.tile for side in sides)
    tiles = sample_tiles(max(height, width))[:, :height, :width]
    plan = StainPlan(IDENTITY if info.stain == "none" else estimate(tiles).transform)
    return [network_input(np.repeat(tile[None], batch or 1, axis=0), plan) for tile in tiles]


def calibration_pictures(folder: Path, info: ModelInfo, size: int) -> list[npt.NDArray[np.float32]]:
    """Patches of the PanNuke folder ``folder``, of every tissue and class, as the network sees them.

    Raises InputError for another folder, and for a size beyond that of the patches.
    """
    if size > TILE:
        raise InputError(
            f"--calibration {folder}: PanNuke's patches are {TILE}×{TILE}, the network takes {size}×{size}"
        )
    fold, _ = split_folds(open_folds(folder))
    chosen = select(fold, candidates(fold), _PATCHES).patches
    plan = stain_as_trained(info)
    return [network_input(tiles_of(fold, [patch.index], (size, size)), plan) for patch in chosen]


def careful_fp16(
    model: onnx.ModelProto, pictures: Sequence[npt.NDArray[np.float32]], bounds: Bounds | None = None
) -> tuple[onnx.ModelProto, HalfReport]:
    """``model``, float32, in float16 but for the fewest blocks that must stay in float32.

    ``pictures`` are batches as `runtimes.base.network_input` makes them. The float32 network is run over them once:
    blocks whose tensors come within a factor of two of float16's end stay in float32, then, in the order of the noise
    that float16 makes in them, as many as it takes until the logits are within ``bounds``. Deterministic.

    Raises InputError as `to_fp16`, GateFailedError where no choice of blocks is enough, or more than half of the
    arithmetic would stay in float32.
    """
    return _Fit(model, pictures, bounds or Bounds()).run()


@dataclass(frozen=True, kw_only=True)
class _Drift:
    max_difference: float
    agreement: float

    def within(self, bounds: Bounds) -> bool:
        return self.max_difference <= bounds.max_difference and self.agreement >= bounds.agreement  # not NaN


class _Fit:
    """One network, brought to float16."""

    def __init__(self, model: onnx.ModelProto, pictures: Sequence[npt.NDArray[np.float32]], bounds: Bounds) -> None:
        self.model, self.pictures, self.bounds = model, pictures, bounds
        ready = settled(model)
        self.graph = Graph(ready)
        self.block = blocks(self.graph)
        self.ranges, self.noise = self._scanned(ready)
        self.order, self.least = self._ordered()
        self.expected = self._logits(model)
        self.drifts: dict[int, _Drift] = {}

    def run(self) -> tuple[onnx.ModelProto, HalfReport]:
        most = self._most()
        count = fewest(lambda n: self._drift(n).within(self.bounds), most, least=self.least)
        if count is None:
            raise GateFailedError(self._refusal(most))
        return self._converted(count), self._report(count)

    def _scanned(self, ready: onnx.ModelProto) -> tuple[dict[str, Range], dict[str, float]]:
        scan = Float16Scan(ready)
        for x_NCHW in self.pictures:
            scan.feed(x_NCHW)
        return scan.ranges(), scan.noise_to_signal()

    def _ordered(self) -> tuple[list[str], int]:
        """Blocks, those first that float16 suits least; and how many of them it cannot hold."""
        large = {name for name, seen in self.ranges.items() if not seen.largest <= FLOAT16_MAX / _HEADROOM}
        for node in self.graph.nodes:
            if large.intersection((*node.input, *node.output)):
                self.noise[self.block[name_of(node)]] = math.inf
        order = sorted((name for name, ratio in self.noise.items() if ratio > 0.0), key=lambda name: -self.noise[name])
        return order, sum(math.isinf(self.noise[name]) for name in order)

    def _most(self) -> int:
        """How many blocks of the order may stay in float32."""
        share = self._shares()
        within = [sum(share[name] for name in self.order[:count]) <= _MOST for count in range(len(self.order) + 1)]
        return within.count(True) - 1

    def _shares(self) -> dict[str, float]:
        """Of the multiply-accumulates, by block."""
        macs = dict.fromkeys(self.block.values(), 0)
        for node, cost in node_costs(self.graph):
            macs[self.block[name_of(node)]] += cost.macs
        return {name: count / max(sum(macs.values()), 1) for name, count in macs.items()}

    def _converted(self, count: int) -> onnx.ModelProto:
        wide = set(self.order[:count])
        return to_fp16(self.model, [node for node, block in self.block.items() if block in wide])

    def _drift(self, count: int) -> _Drift:
        """With the first ``count`` blocks of the order in float32."""
        if count not in self.drifts:
            seen, expected = self._logits(self._converted(count)), self.expected
            largest = max(1.0, float(np.abs(expected).max()))
            self.drifts[count] = _Drift(
                max_difference=float(np.abs(seen - expected).max() / largest),
                agreement=float((seen.argmax(axis=1) == expected.argmax(axis=1)).mean()),
            )
        return self.drifts[count]

    def _logits(self, model: onnx.ModelProto) -> npt.NDArray[np.float32]:
        """Of all pictures, float32 [N, 6, H, W]."""
        runtime = session(spelled_out(model), threads=None)
        output = np.concatenate([runtime.run(None, {INPUT_NAME: x_NCHW})[0] for x_NCHW in self.pictures])
        tail = self.graph.metadata().get(TAIL_KEY)
        return finish(output, HeadTail.from_json(tail, source="the network")) if tail else output

    def _refusal(self, most: int) -> str:
        if most < self.least:
            return (
                f"{self.least} of {len(set(self.block.values()))} blocks, more than {_MOST:.0%} of the arithmetic, "
                f"compute numbers that float16 cannot hold: use fp32"
            )
        best = self._drift(most)
        return (
            f"FP16 changes logits by up to {best.max_difference:.2g} of the largest and keeps the class of "
            f"{best.agreement:.3%} of pixels, with {most} blocks in float32; allowed are "
            f"{self.bounds.max_difference:g} and {self.bounds.agreement:.3%}: use fp32"
        )

    def _report(self, count: int) -> HalfReport:
        convolved = {node.output[0] for node in self.graph.nodes if node.op_type == "Conv"}
        plain, final, share = self._drift(0), self._drift(count), self._shares()
        return HalfReport(
            pictures=len(self.expected),
            max_difference=final.max_difference,
            agreement=final.agreement,
            plain_max_difference=plain.max_difference,
            plain_agreement=plain.agreement,
            islands=tuple(self.order[:count]),
            blocks=len(set(self.block.values())),
            float32_share_of_macs=sum(share[name] for name in self.order[:count]),
            near_overflow={n: r.largest for n, r in self.ranges.items() if not r.largest < FLOAT16_MAX / _NEAR},
            mostly_small={n: r.small for n, r in self.ranges.items() if r.small > 0.5 and n in convolved},
            weights=self._weights(),
        )

    def _weights(self) -> HalfWeights:
        arrays = {name: np.abs(a) for name, a in self.graph.constants.items() if a.dtype == np.float32}
        coarse = [a[(a > 0) & (a < FLOAT16_NORMAL)] for a in arrays.values()]
        return HalfWeights(
            coarse=sum(values.size for values in coarse),
            zeroed=sum(int((values.astype(np.float16) == 0).sum()) for values in coarse),
            too_large=tuple(name for name, array in arrays.items() if array.max(initial=0.0) > FLOAT16_MAX),
        )
