"""Mixed precision by measurement: the fewest layers back in float such that the budget holds."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from unetsharp.quantize.drift import Drift
from unetsharp_engines.files import replacing

__all__ = ["LayerCost", "Trials", "cheapest_first", "fewest"]


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """An INT8 layer: what it costs, and what INT8 costs it."""

    name: str
    macs: float
    """Share of the network's multiply-accumulates."""
    bytes: float
    """Share of the bytes that the network's nodes read and write."""
    noise_to_signal: float
    """At its output, from its own rounding: see `unetsharp_engines.quantization.Sensitivity`."""

    @property
    def sqnr_db(self) -> float | None:
        """Signal to quantization noise ratio, decibel; None where there is no noise or no signal."""
        ratio = self.noise_to_signal
        return -10.0 * math.log10(ratio) if 0.0 < ratio < math.inf else None


def cheapest_first(layers: Sequence[LayerCost]) -> list[str]:
    """Names in the order in which layers are worth giving back to float: most noise removed for what it costs first."""
    return [x.name for x in sorted(layers, key=lambda x: (-x.noise_to_signal / (x.macs + x.bytes), x.name))]


class Trials:
    """Drift by the number of layers in float, measured once each; kept in ``path`` so that a search can go on."""

    def __init__(self, measure: Callable[[int], Drift], path: Path | None = None, key: str = "") -> None:
        self._measure, self._path, self._key = measure, path, key
        self.drifts: dict[int, Drift] = _read(path, key) if path else {}

    def __call__(self, floats: int) -> Drift:
        """The drift with the first ``floats`` layers of the order in float."""
        if floats not in self.drifts:
            self.drifts[floats] = self._measure(floats)
            self._save()
        return self.drifts[floats]

    def _save(self) -> None:
        if self._path:
            trials = {str(n): dataclasses.asdict(drift) for n, drift in self.drifts.items()}
            with replacing(self._path) as temporary:
                temporary.write_text(json.dumps({"key": self._key, "trials": trials}), encoding="utf-8")


def _read(path: Path, key: str) -> dict[int, Drift]:
    if not path.is_file():
        return {}
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # a computer that lost its power may leave it empty
        return {}
    return {int(n): Drift(**fields) for n, fields in saved["trials"].items()} if saved["key"] == key else {}


def fewest(holds: Callable[[int], bool], most: int, *, least: int = 0) -> int | None:
    """The smallest number from ``least`` to ``most`` for which ``holds``; None if it does not for ``most`` either.

    More layers in higher precision are taken to drift less: ``least`` and 1, 2, 4, … more are tried until one holds,
    then what lies between it and the last that did not is halved.
    """
    if least > most:
        return None
    if holds(least):
        return least
    failed, holding = least, min(least + 1, most)
    while not holds(holding):
        if holding == most:
            return None
        failed, holding = holding, min(least + 2 * (holding - least), most)
    while holding - failed > 1:
        middle = (failed + holding) // 2
        failed, holding = (failed, middle) if holds(middle) else (middle, holding)
    return holding
