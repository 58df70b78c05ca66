"""What INT8 loses on labelled patches that it was not calibrated on."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unetsharp.evaluate.run import stain_as_trained
from unetsharp.quantize.selection import Selection
from unetsharp_engines.errors import InputError
from unetsharp_engines.model_info import ModelInfo
from unetsharp_engines.runtimes.onnxruntime import OnnxRuntime
from unetsharp_engines.stain import IDENTITY, StainPlan
from unetsharp_trainer.data.pannuke import Fold
from unetsharp_trainer.metrics.confusion import ConfusionMatrix

__all__ = ["Budget", "Drift", "HeldOut", "tiles_of"]

_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Drift:
    """INT8 against float on the same patches."""

    images: int
    float_dice: float
    """Foreground Dice of the float network against the labels."""
    int8_dice: float
    """The same of the INT8 network."""
    agreement: float
    """Share of pixels given the same class by both, 0 to 1."""

    @property
    def dice_drop(self) -> float:
        """Share of the float network's foreground Dice that is lost; negative where INT8 is better."""
        return 1.0 - self.int8_dice / self.float_dice

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "dice_drop": self.dice_drop}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What INT8 may lose."""

    max_dice_drop: float = 0.005
    """Of foreground Dice, as a share of the float network's."""
    min_agreement: float = 0.99
    """Share of pixels that keep their class."""

    def __post_init__(self) -> None:
        """Raise InputError for values that mean nothing."""
        if not 0.0 <= self.max_dice_drop < 1.0:
            raise InputError(f"--max-dice-drop {self.max_dice_drop:g}: wanted a share from 0 to 1, such as 0.005")
        if not 0.0 <= self.min_agreement <= 1.0:
            raise InputError(f"--min-agreement {self.min_agreement:g}: wanted a share from 0 to 1, such as 0.99")

    def holds(self, drift: Drift) -> bool:
        """Whether ``drift`` is within."""
        return drift.dice_drop <= self.max_dice_drop and drift.agreement >= self.min_agreement


class HeldOut:
    """Labelled patches, and what the float network says of them."""

    def __init__(self, model: bytes, info: ModelInfo, sides: tuple[int, int], fold: Fold, selection: Selection) -> None:
        """Run the float network ``model``. Raises InputError if it finds no nucleus: no share of nothing is lost."""
        indices = [patch.index for patch in selection.patches]
        self._tiles = stain_as_trained(info).apply(tiles_of(fold, indices, sides))
        self._targets = np.stack([fold.target(index)[: sides[0], : sides[1]] for index in indices])
        self._channels = self._run(model)
        self._dice = self._foreground_dice(self._channels)
        if not self._dice > 0.0:
            raise InputError(
                f"{fold.files.images.path.parent}: on {len(indices)} patches the float network's foreground Dice is "
                f"{self._dice:g}, so what INT8 loses of it means nothing; give a trained network and labelled patches"
            )

    def drift(self, model: bytes) -> Drift:
        """What the INT8 network ``model`` loses."""
        channels = self._run(model)
        return Drift(
            images=len(channels),
            float_dice=self._dice,
            int8_dice=self._foreground_dice(channels),
            agreement=float((channels == self._channels).mean()),
        )

    def _run(self, model: bytes) -> npt.NDArray[np.uint8]:
        with OnnxRuntime(model) as runtime:
            parts = [
                runtime.logits(self._tiles[start : start + _BATCH], StainPlan(IDENTITY)).argmax(axis=1)
                for start in range(0, len(self._tiles), _BATCH)
            ]
        return np.concatenate(parts).astype(np.uint8)

    def _foreground_dice(self, channels: npt.NDArray[np.uint8]) -> float:
        counted = ConfusionMatrix()
        counted.add(self._targets, channels)
        return counted.foreground_dice()


def tiles_of(fold: Fold, indices: list[int], sides: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Patches ``indices`` as the network takes them, uint8 [N, height, width, 3]: their upper left corner."""
    return np.stack([fold.image(index)[: sides[0], : sides[1]] for index in indices])
