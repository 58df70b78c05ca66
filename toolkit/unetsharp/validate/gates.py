"""The limits that a deployed network must keep, and how sure it is that it keeps them."""

from dataclasses import dataclass

from unetsharp.quantize.drift import Budget
from unetsharp.validate.bootstrap import Estimate

__all__ = ["MIN_NUCLEI", "Gate", "Limits", "Ungated"]

MIN_NUCLEI = 200
"""A class with fewer nuclei in the data is not gated by itself: chance would decide."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a step may lose against the reference."""

    max_dice_drop: float | None = None
    """Share of the reference's Dice; None is each precision's own limit."""
    min_agreement: float | None = None
    """Share of pixels that keep their class; None is each precision's own limit."""

    def __post_init__(self) -> None:
        """Raise InputError for values that mean nothing."""
        self.of("int8")

    def of(self, precision: str) -> Budget:
        """Of a step of ``precision``: INT8 may lose 0.5% and change 1% of pixels, FP16 and FP32 0.1% of each."""
        own = Budget() if precision == "int8" else Budget(max_dice_drop=0.001, min_agreement=0.999)
        return Budget(
            max_dice_drop=own.max_dice_drop if self.max_dice_drop is None else self.max_dice_drop,
            min_agreement=own.min_agreement if self.min_agreement is None else self.min_agreement,
        )


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One limit of one step."""

    step: str
    """Title of the step."""
    name: str
    """Such as ``foreground Dice``."""
    kept: Estimate
    """Share of the reference's Dice that is left, or share of pixels that keep their class; 1 is no change."""
    limit: float
    """The least that passes."""

    @property
    def passed(self) -> bool:
        """Whether the limit is kept."""
        return self.kept.value >= self.limit

    @property
    def certainty(self) -> str:
        """What other patches might have said, in words."""
        if self.kept.low is None or self.kept.high is None:
            return "Too few patches for an interval."
        if self.kept.low == self.kept.high == 1.0:
            return "Not the least change."
        if self.is_noise:
            return "Within the noise of the data: the interval reaches across the limit, more patches could turn it."
        if self.kept.covers(1.0):
            return "Within the noise of the data: no change that these patches can tell from none."
        return "Clear: the whole interval is on one side of the limit."

    @property
    def is_noise(self) -> bool:
        """Whether the interval reaches across the limit."""
        return self.kept.low is not None and self.kept.high is not None and self.kept.low < self.limit <= self.kept.high

    def __str__(self) -> str:
        return f"{self.name} of {self.step}: {self.kept.value:.3%}, limit {self.limit:.3%}"


@dataclass(frozen=True, kw_only=True)
class Ungated:
    """A measure that no gate holds, and why."""

    name: str
    reason: str
