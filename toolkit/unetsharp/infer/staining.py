"""Which stain transform a picture gets, from what ``--stain`` says and what the network was trained after."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unetsharp_engines.errors import InputError
from unetsharp_engines.stain import IDENTITY, StainPlan, StainStatus, StainTransform, estimate

__all__ = ["PictureStain", "StainScope", "StainSetting", "plan_for"]

ESTIMATE_PIXELS: int = 4_000_000
"""Larger pictures are estimated on every k-th pixel of every k-th row, the smallest k that gets below this."""


class StainScope(Enum):
    """What one stain transform is estimated on."""

    SLIDE = "slide"
    TILE = "tile"
    FIXED = "fixed"
    NONE = "none"


@dataclass(frozen=True)
class StainSetting:
    """``--stain``, parsed."""

    scope: StainScope
    transform: StainTransform = IDENTITY
    """The transform of `StainScope.FIXED`."""

    @classmethod
    def parse(cls, text: str) -> "StainSetting":
        """``slide``, ``tile``, ``none`` or ``fixed:FILE``. InputError for others and for a FILE that holds none.

        FILE is JSON with a 3 by 3 ``matrix`` and an ``offset`` of 3, as each picture's ``stain`` in ``run.json``.
        """
        word, _, file = text.partition(":")
        if word == StainScope.FIXED.value and file:
            return cls(StainScope.FIXED, _read_transform(Path(file)))
        if file or word not in ("slide", "tile", "none"):
            raise InputError(f"--stain {text}: it takes slide, tile, none or fixed:FILE, the FILE a stain transform")
        return cls(StainScope(word))


@dataclass(frozen=True)
class PictureStain:
    """What was done about one picture's stains."""

    scope: StainScope
    plan: StainPlan
    status: StainStatus | None
    """Of the estimate on the whole picture; None where there was none."""
    warnings: tuple[str, ...] = ()


def plan_for(picture: npt.NDArray[np.uint8], setting: StainSetting, trained_after: str) -> PictureStain:
    """The stain plan of one picture, uint8 [H, W, 3] at the network's resolution.

    ``trained_after`` is `ModelInfo.stain`: a network trained without normalization gets none. With scope `TILE` the
    picture's own transform is what tiles without an estimate of their own fall back to; a picture without an
    estimate is left as it is, with a warning that names the status.
    """
    if trained_after == "none":
        return _untouched(setting)
    if setting.scope is StainScope.NONE:
        return PictureStain(StainScope.NONE, StainPlan(IDENTITY), None, (_NOT_NORMALIZED,))
    if setting.scope is StainScope.FIXED:
        return PictureStain(StainScope.FIXED, StainPlan(setting.transform), None)
    return _estimated(picture, setting.scope)


_NOT_NORMALIZED = "the network was trained on stain-normalized pictures, and --stain none leaves this one as it is"


def _untouched(setting: StainSetting) -> PictureStain:
    asked = setting.scope in (StainScope.TILE, StainScope.FIXED)
    note = (f"--stain {setting.scope.value} has no effect: the network was trained without stain normalization",)
    return PictureStain(StainScope.NONE, StainPlan(IDENTITY), None, note if asked else ())


def _estimated(picture: npt.NDArray[np.uint8], scope: StainScope) -> PictureStain:
    step = int(np.ceil(np.sqrt(picture.shape[0] * picture.shape[1] / ESTIMATE_PIXELS)))
    found = estimate(picture[::step, ::step])
    plan = StainPlan(found.transform, per_tile=scope is StainScope.TILE)
    if found.status is StainStatus.OK:
        return PictureStain(scope, plan, found.status)
    note = f"its stains cannot be told apart ({found.status.name}); it was not stain-normalized"
    return PictureStain(scope, plan, found.status, (note,))


def _read_transform(path: Path) -> StainTransform:
    try:
        return StainTransform.from_json(path.read_text(), source=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--stain fixed: {path} cannot be read ({error}); give a JSON stain transform") from error
