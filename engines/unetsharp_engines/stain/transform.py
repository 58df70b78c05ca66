"""The application of stain normalization: one matrix and one offset in log space."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from unetsharp_engines.errors import InputError
from unetsharp_engines.stain.pixels import blocks, check_rgb
from unetsharp_engines.stain.target import TARGET_MAX_CONCENTRATIONS, TARGET_STAINS, WHITE

__all__ = ["IDENTITY", "StainTransform"]

_LOG2 = np.log2(np.arange(256) + 1.0)
LOG2_CLIP = np.log2(255.5)

ROUND_UP = np.log2(1.0 + 2.0**-18)
"""Glass of level Io - 1 has no density, so it maps to exactly Io: this, 0.001 level, keeps rounding errors, float32's
too, from leaving it just below, where all that glass would be truncated to Io - 1."""


@dataclass(frozen=True, eq=False)
class StainTransform:
    """I' = exp2(A·log2(I + 1) + b), clipped at 255 and truncated to uint8; I is RGB, 0 to 255.

    Equal matrices and offsets are equal transforms, with equal hashes and digests. The arrays are read-only copies.
    Raises ValueError for wrong shapes and for numbers that are not finite.
    """

    matrix: npt.NDArray[np.float64]
    """A: float64 (3, 3)."""
    offset: npt.NDArray[np.float64]
    """b: float64 (3,)."""
    digest: str = field(init=False)
    """SHA-256 of matrix and offset (little-endian float64, row by row), 64 hex digits."""

    def __post_init__(self) -> None:
        for name, shape in (("matrix", (3, 3)), ("offset", (3,))):
            object.__setattr__(self, name, _frozen(getattr(self, name), name, shape))
        numbers = np.concatenate([self.matrix.ravel(), self.offset]).astype("<f8")
        object.__setattr__(self, "digest", hashlib.sha256(numbers.tobytes()).hexdigest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StainTransform) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @classmethod
    def from_stains(
        cls, stains: npt.NDArray[np.float64], max_concentrations: npt.NDArray[np.float64]
    ) -> "StainTransform":
        """The transform that turns these stains into the target's.

        ``stains`` is float64 (3, 2): optical density of hematoxylin and eosin, linearly independent columns;
        ``max_concentrations`` float64 (2,): their 99th percentiles, not zero.

        Concentrations by least squares, scaled to the target's maxima and mixed with the target's stains, make new
        densities OD' = A·OD with A = HE_target · diag(maxC_target / maxC) · pinv(HE). In levels that is
        I' = Io·(I + 1)^A·Io^-A, hence b = log2(Io)·(1 - A·1), rounded up by 0.001 level.
        """
        scale = TARGET_MAX_CONCENTRATIONS / max_concentrations
        matrix = (TARGET_STAINS * scale) @ np.linalg.pinv(stains)
        return cls(matrix, np.log2(WHITE) * (1.0 - matrix.sum(axis=1)) + ROUND_UP)

    def apply(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Normalize uint8 RGB of shape (..., 3); same shape and type back, in new memory. InputError if it is not."""
        check_rgb(image)
        if self == IDENTITY:
            return np.array(image)
        normalized = np.empty(image.shape, np.uint8)
        self._fill(image, normalized)
        return normalized

    def apply_levels(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """`apply` before the truncation: float64, same shape, 0 to 255. InputError as there."""
        check_rgb(image)
        levels = np.empty(image.shape)
        self._fill(image, levels)
        np.minimum(levels, 255.0, out=levels)
        return levels

    def _fill(self, image: npt.NDArray[np.uint8], out: npt.NDArray[Any]) -> None:
        """Write I' to contiguous ``out``, up to 255.5, which truncates to 255; clipped in log space, none overflows."""
        pixels, results = image.reshape(-1, 3), out.reshape(-1, 3)
        for block in blocks(len(pixels)):
            levels = _LOG2.take(pixels[block]) @ self.matrix.T
            levels += self.offset
            np.minimum(levels, LOG2_CLIP, out=levels)
            results[block] = np.exp2(levels, out=levels)

    def to_json(self) -> str:
        """One JSON object that `from_json` reads back to an equal transform."""
        return json.dumps({"matrix": self.matrix.tolist(), "offset": self.offset.tolist()})

    @classmethod
    def from_json(cls, text: str, *, source: str) -> "StainTransform":
        """Parse what `to_json` wrote. ``source`` names the file in the InputError that unfit text raises."""
        try:
            fields = json.loads(text)
            return cls(fields["matrix"], fields["offset"])
        except (ValueError, OverflowError, TypeError, KeyError) as error:
            raise InputError(
                f"{source}: not a stain transform ({error!r}); it takes a JSON object with a finite "
                "3 by 3 'matrix' and 'offset' of 3, as infer writes"
            ) from error


def _frozen(values: npt.ArrayLike, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    array = np.array(values, dtype=np.float64) + 0.0  # -0.0 and 0.0 are one number, so one digest
    if array.shape != shape or not np.isfinite(array).all():
        raise ValueError(f"{name} has shape {array.shape}, wanted {shape} finite numbers")
    array.flags.writeable = False
    return array


IDENTITY = StainTransform(np.eye(3), np.full(3, np.log2(1.0 - 2.0**-9)))
"""Returns its input bit for bit, by the same formula as every transform: A = 1 and b = 0 would give I + 1, and
(I + 1)·(1 - 1/512) truncates to I for every level I, with a margin of 1/512 that float32 keeps too."""
