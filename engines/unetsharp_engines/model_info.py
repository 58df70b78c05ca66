"""What a network is, carried unchanged by its weights file, its ONNX and its bundle."""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

from unetsharp_engines.contract import CLASSES, MPP, TILE
from unetsharp_engines.errors import InputError

__all__ = ["METADATA_KEY", "QUANTIZATION_KEY", "ModelInfo"]

METADATA_KEY = "unetsharp"
"""Key under which `ModelInfo.to_json` is stored in safetensors metadata and ONNX ``metadata_props``."""

QUANTIZATION_KEY = "unetsharp.quantization"
"""Key in ONNX ``metadata_props`` under which an INT8 network says how it was made and what it lost, as JSON."""


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Everything a runtime must know about a network beside its tensors."""

    name: str
    """What people call these weights, e.g. ``unetsharp-edge``."""
    encoder: str
    """timm backbone name, e.g. ``resnext101_32x4d``."""
    width: int
    """Decoder branch width c; decoder nodes have 5c channels. The paper's is 64."""
    train_size: int
    """Side of the training windows in pixels."""
    stain: str = "macenko"
    """Stain normalization the network was trained after: ``macenko`` or ``none``."""
    mpp: float = MPP
    """Resolution trained at, µm per pixel."""
    tile: int = TILE
    """Side of the tiles to run it on, pixels."""
    classes: tuple[str, ...] = tuple(c.name for c in CLASSES)
    """Names by output channel."""
    untaught: tuple[str, ...] = ()
    """Classes its training data never showed: it cannot find them."""
    weights_sha256: str = ""
    """SHA-256 of the safetensors file these tensors came from; empty in that file itself."""
    tool_version: str = ""
    """Version of unetsharp that wrote the file."""

    def to_json(self) -> str:
        """One JSON object, keys sorted, so that equal infos are equal bytes."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str, *, source: str) -> "ModelInfo":
        """Parse what `to_json` wrote. ``source`` names the file in the InputError that unfit text raises."""
        try:
            fields: dict[str, Any] = json.loads(text)
            for name in ("classes", "untaught"):
                fields[name] = tuple(fields[name])
            info = cls(**fields)
            _check(info)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(f"{source}: its unetsharp metadata cannot be read ({error}); export it again") from error
        expected = tuple(c.name for c in CLASSES)
        if info.classes != expected:
            raise InputError(
                f"{source}: its classes are {list(info.classes)}; this version works with {list(expected)}"
            )
        return info


def _check(info: ModelInfo) -> None:
    """Raise ValueError unless every field is of its type and in its range."""
    texts = ("name", "encoder", "weights_sha256", "tool_version")
    wrong = [name for name in texts if not isinstance(getattr(info, name), str)]
    wrong += [n for n in ("width", "train_size", "tile") if type(getattr(info, n)) is not int or getattr(info, n) < 1]
    wrong += [n for n in ("classes", "untaught") if not all(isinstance(item, str) for item in getattr(info, n))]
    if type(info.mpp) not in (int, float) or not 0 < info.mpp < math.inf:
        wrong.append("mpp")
    if info.stain not in ("macenko", "none"):
        wrong.append("stain")
    if wrong:
        raise ValueError(f"{wrong[0]} is {getattr(info, wrong[0])!r:.40}")
