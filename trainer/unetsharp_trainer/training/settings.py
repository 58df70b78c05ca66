"""What a training run is told: the recipe (how to teach) and the settings (what, on what, where)."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unetsharp_engines.contract import MAX_SIDE, SIDE_MULTIPLE
from unetsharp_engines.errors import InputError

__all__ = ["PAPER", "RECIPES", "SCRATCH", "Recipe", "TrainSettings", "recipe_for"]

LOSSES = ("paper", "author", "ce-dice")
OPTIMIZERS = ("adabound", "adamw")
AUGMENTATIONS = ("paper", "wide")
PRECISIONS = ("auto", "float32", "bfloat16")


def _require_one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"the {what} is {value!r}; it must be one of {', '.join(allowed)}")


def _require_at_least(what: str, value: float, least: int) -> None:
    if value < least:
        raise InputError(f"{what} is {value}; it must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the network is taught. The defaults are the paper's; where it is silent, its author's code decides."""

    loss: str = "paper"
    """``paper``: Focal Tversky summed over classes; ``author``: one pooled term; ``ce-dice``: cross-entropy + Dice."""
    optimizer: str = "adabound"
    """``adabound`` at a constant rate, or ``adamw`` with one cycle: a linear warm-up, then half a cosine down to 0."""
    learning_rate: float = 1e-4
    """AdaBound's initial rate, or the top of AdamW's cycle."""
    augmentation: str = "paper"
    """``paper``: its list; ``wide``: stain, colour, blur and scale changes far enough to meet other scanners."""
    epochs: int = 50
    frozen_epochs: int = 5
    """First epochs, in which the encoder keeps what it was given, its running statistics included."""
    train_norm_affine: bool = False
    """Whether the encoder's BatchNorm scales and shifts are trained too; random ones have nothing worth keeping."""
    pooling: bool = True
    """Whether the ASPP's global-average branch takes part (`UNetSharp.silence_pooling`)."""
    size: int = 224
    """Side of the training windows, pixels."""
    batch: int = 8
    """Windows in one forward pass of one process."""
    accumulate: int = 8
    """Forward passes whose gradients make one step."""

    def __post_init__(self) -> None:
        _require_one_of("loss", self.loss, LOSSES)
        _require_one_of("optimizer", self.optimizer, OPTIMIZERS)
        _require_one_of("augmentation", self.augmentation, AUGMENTATIONS)
        for name in ("epochs", "accumulate"):
            _require_at_least(name, getattr(self, name), 1)
        _require_at_least("batch", self.batch, 2)  # BatchNorm after global pooling needs two values
        _require_at_least("frozen epochs", self.frozen_epochs, 0)
        if self.learning_rate <= 0:
            raise InputError(f"the learning rate is {self.learning_rate}; it must be above 0 (the paper's is 1e-4)")
        if self.size % SIDE_MULTIPLE or not SIDE_MULTIPLE <= self.size <= MAX_SIDE:
            raise InputError(
                f"the size is {self.size}; it must be a multiple of {SIDE_MULTIPLE} up to {MAX_SIDE}, like 224"
            )


PAPER = Recipe()
"""The paper's: meant for an encoder that has seen pictures before."""

SCRATCH = Recipe(
    loss="ce-dice",
    optimizer="adamw",
    learning_rate=2e-3,
    augmentation="wide",
    frozen_epochs=0,
    train_norm_affine=True,
    size=256,
    accumulate=1,
)
"""Recommended from random weights, its parts measured in ``benchmarks/results/recipe_parts.json``."""

RECIPES = {"paper": PAPER, "scratch": SCRATCH}


def recipe_for(name: str, encoder_weights: str, **changes: Any) -> Recipe:
    """The recipe called ``name`` with ``changes`` (None changes nothing).

    An encoder of random weights is not frozen unless ``changes`` say so: there is nothing in it to keep. Raises
    InputError for a name that is none of `RECIPES` and for values out of range.
    """
    _require_one_of("recipe", name, tuple(RECIPES))
    given = {field: value for field, value in changes.items() if value is not None}
    if encoder_weights == "none":
        given.setdefault("frozen_epochs", 0)
    return dataclasses.replace(RECIPES[name], **given)


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """One run of `unetsharp_trainer.training.run.train`."""

    data: Path
    """Folder with PanNuke's folds."""
    out: Path
    recipe: Recipe = PAPER
    name: str = "unetsharp"
    """What the weights are called (`ModelInfo.name`)."""
    encoder: str = "resnext101_32x4d"
    width: int = 64
    encoder_weights: str = "timm"
    """``timm`` (download), ``none`` (random), or a file."""
    folds: str = "1,2,3"
    """TRAIN,VALID,TEST; ``1+2,-,3`` joins folds, ``-`` is none."""
    stain: str = "tile"
    """``tile``: Macenko normalization of each patch; ``none``."""
    minutes: float | None = None
    """Train for so long instead of for the recipe's epochs: the rate's cycle and the run end with the time."""
    foreground_weight: float = 0.0
    """Weight of the nucleus-against-background term, which nuclei of unknown class take part in."""
    patience: int = 0
    """Epochs without a better validation Dice after which to stop; 0 never does."""
    checkpoint_minutes: float = 5.0
    """Most time between checkpoints; the ends of epochs make some too, at most two a minute."""
    precision: str = "auto"
    """``bfloat16`` autocast, ``float32``, or the former on GPUs that have it and the latter elsewhere."""
    device: str = "auto"
    workers: int | None = None
    """Processes that read and augment; 0 does it in between steps, None is 0 on the CPU and up to 8 beside a GPU. They
    change the speed, never the result."""
    compile: bool = False
    cache: Path | None = None
    """Where prepared folds are kept; beside the data if None."""
    seed: int = 0

    def __post_init__(self) -> None:
        _require_one_of("precision", self.precision, PRECISIONS)
        _require_one_of("device", self.device, ("auto", "cpu", "cuda"))
        _require_one_of("stain", self.stain, ("tile", "none"))
        _require_at_least("foreground weight", self.foreground_weight, 0)
        _require_at_least("patience", self.patience, 0)
        if self.minutes is not None and self.minutes <= 0:
            raise InputError(f"the training time is {self.minutes} minutes; it must be above 0")
        _require_at_least("workers", self.workers or 0, 0)

    def fingerprint(self) -> dict[str, Any]:
        """Everything that shapes the loss curve, as plain values: a resumed run must agree on it."""
        shaping = {f.name for f in dataclasses.fields(self)} - _WITHOUT_EFFECT_ON_THE_CURVE
        return {name: value for name, value in dataclasses.asdict(self).items() if name in shaping}


_WITHOUT_EFFECT_ON_THE_CURVE = {
    "data", "out", "name", "patience", "checkpoint_minutes", "device", "workers", "compile", "cache",
}  # fmt: skip
