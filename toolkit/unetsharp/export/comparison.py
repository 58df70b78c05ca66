"""Two runtimes, the same real tiles: how far apart are their logits, and do they name the same classes."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unetsharp_engines.contract import CLASSES
from unetsharp_engines.errors import GateFailedError
from unetsharp_engines.runtimes.base import Runtime
from unetsharp_engines.stain import IDENTITY, StainPlan, estimate

__all__ = ["Comparison", "Gate", "compare", "sample_tiles"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How a candidate's logits differ from the reference's, over all tiles and batch sizes."""

    tiles: int
    """Different tiles compared."""
    batches: tuple[int, ...]
    """Batch sizes they were run in."""
    max_difference: float
    """Largest |Δlogit|."""
    mean_difference: float
    """Mean |Δlogit|."""
    largest_logit: float
    """Largest |logit| of the reference: the scale of the above."""
    agreement: float
    """Share of pixels given the same class, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a comparison must hold."""

    max_difference: float
    """Bound of |Δlogit| as a share of the largest |logit|, or as it is where no logit exceeds 1."""
    agreement: float
    """Least share of pixels of the same class."""

    def bound(self, seen: Comparison) -> float:
        """Bound of |Δlogit| for logits as large as those ``seen``."""
        return self.max_difference * max(1.0, seen.largest_logit)

    def check(self, seen: Comparison, what: str) -> None:
        """Raise GateFailedError, naming ``what`` was compared, unless ``seen`` is within."""
        if not seen.max_difference <= self.bound(seen):  # not a number, too
            raise GateFailedError(
                f"{what} differs from PyTorch by up to {seen.max_difference:.2g} in a logit; "
                f"the bound is {self.bound(seen):.2g}"
            )
        if seen.agreement < self.agreement:
            raise GateFailedError(
                f"{what} gives {seen.agreement:.4%} of pixels the class that PyTorch gives; "
                f"the bound is {self.agreement:.4%}"
            )


def sample_tiles(size: int) -> npt.NDArray[np.uint8]:
    """Three tiles of the slide region that ships, brought from 0.5 to 0.25 µm/px: uint8 RGB [3, size, size, 3]."""
    from importlib.resources import files

    from PIL import Image

    with (files("unetsharp") / "assets" / "crop.png").open("rb") as file, Image.open(file) as crop:
        region = np.asarray(crop.convert("RGB").resize((2 * crop.width, 2 * crop.height), Image.Resampling.BICUBIC))
    last = np.array(region.shape[:2]) - size
    corners = ((last * share).astype(int) for share in (0.25, 0.5, 0.75))
    return np.stack([region[y : y + size, x : x + size] for y, x in corners])


def compare(reference: Runtime, candidate: Runtime, tiles_NHWC: npt.NDArray[np.uint8]) -> Comparison:
    """Run both on ``tiles_NHWC``, uint8 [N, H, W, 3]: all in one batch, then the first alone.

    Stains are normalized by one transform for all tiles, if the network was trained so: it sees what it will see.
    """
    plan = StainPlan(IDENTITY if reference.info.stain == "none" else estimate(tiles_NHWC).transform)
    pairs = [(reference.logits(tiles, plan), candidate.logits(tiles, plan)) for tiles in (tiles_NHWC, tiles_NHWC[:1])]
    expected, seen = (_pixels(logits) for logits in zip(*pairs, strict=True))
    differences = np.abs(expected - seen)
    return Comparison(
        tiles=len(tiles_NHWC),
        batches=(len(tiles_NHWC), 1),
        max_difference=float(differences.max()),
        mean_difference=float(differences.mean()),
        largest_logit=float(np.abs(expected).max()),
        agreement=float((expected.argmax(axis=1) == seen.argmax(axis=1)).mean()),
    )


def _pixels(batches: tuple[npt.NDArray[np.float32], ...]) -> npt.NDArray[np.float32]:
    """Batches of [N, 6, H, W] as [pixels, 6]."""
    return np.concatenate([logits.transpose(0, 2, 3, 1).reshape(-1, len(CLASSES)) for logits in batches])
