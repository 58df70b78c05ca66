"""Finishing what a tail-less network leaves undone: from the taps at low resolution to logits."""

import dataclasses
import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unetsharp_engines.contract import TAPS
from unetsharp_engines.errors import InputError
from unetsharp_engines.rewrites.taps import tap_matrices

__all__ = ["TAIL_KEY", "HeadTail", "finish"]

TAIL_KEY = "unetsharp.tail"
"""Key in ONNX ``metadata_props`` under which a tail-less network says, as `HeadTail.to_json`, how to finish it."""


@dataclass(frozen=True, kw_only=True)
class HeadTail:
    """What is left to do behind a tail-less network.

    logits[k, y, x] = Σ over row and column in 0..2 of U(taps[9k + 3·column + row])[y + row - 1, x + column - 1],
    where U upsamples bilinearly by ``factor`` (half-pixel centres, edges held) and what lies outside U's picture is 0.
    """

    classes: int
    """Channels of the logits."""
    factor: int
    """Upsampling, in rows and in columns."""
    channels: int
    """Channels of the taps: 9 per class, and then zeros that only pad."""

    def to_json(self) -> str:
        """One JSON object, keys sorted."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str, *, source: str) -> "HeadTail":
        """Parse what `to_json` wrote. ``source`` names the file in the InputError that unfit text raises."""
        try:
            tail = cls(**json.loads(text))
            fits = 0 < TAPS * tail.classes <= tail.channels and tail.factor > 0
        except (json.JSONDecodeError, TypeError) as error:
            raise InputError(f"{source}: its {TAIL_KEY} metadata cannot be read ({error}); export it again") from error
        if not fits:
            raise InputError(f"{source}: its {TAIL_KEY} metadata is {tail}, which no network has; export it again")
        return tail


def finish(taps: npt.NDArray[np.float32], tail: HeadTail) -> npt.NDArray[np.float32]:
    """Logits, float32 [N, classes, h·factor, w·factor], of a tail-less network's output [N, channels, h, w].

    It is the exact continuation of the network (proof in `taps`); float64 taps give float64 logits.
    """
    n, _, h, w = taps.shape
    rows, columns = (np.hstack(list(tap_matrices(side, tail.factor))).astype(taps.dtype) for side in (h, w))
    stacked = taps[:, : TAPS * tail.classes].reshape(n, tail.classes, 3, 3 * h, w)
    tall = rows @ stacked  # [n, classes, 3 columns, H, w]
    side_by_side = tall.transpose(0, 1, 3, 2, 4).reshape(n, tail.classes, h * tail.factor, 3 * w)
    logits: npt.NDArray[np.float32] = side_by_side @ columns.T
    return logits
