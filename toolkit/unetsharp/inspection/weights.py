"""A weights file, from its header alone: safetensors is 8 bytes of length, a JSON header, and the tensors."""

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from unetsharp_engines.errors import InputError
from unetsharp_engines.files import sha256_of
from unetsharp_engines.model_info import METADATA_KEY, ModelInfo

__all__ = ["facts_of"]

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""Last part of the names of tensors that training measures rather than learns."""


def facts_of(path: Path) -> dict[str, Any]:
    """Network, tensors, parameters by part and number format. Neither torch nor safetensors is needed.

    Raises InputError for a file that is not whole.
    """
    header = _header(path)
    metadata = header.pop("__metadata__", {})
    parameters = {name: math.prod(t["shape"]) for name, t in header.items() if name.split(".")[-1] not in _BUFFERS}
    parts: Counter[str] = Counter()
    for name, count in parameters.items():
        parts[name.split(".")[0]] += count
    return {
        "size": path.stat().st_size,
        "sha256": sha256_of(path),
        "network": _network(metadata, path),
        "tensors": len(header),
        "parameters": sum(parameters.values()),
        "parameters_by_part": dict(parts),
        "formats": dict(Counter(tensor["dtype"] for tensor in header.values())),
        "runs_on": ["torch"],
    }


def _header(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(length))
        ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
        whole = 8 + length + max(ends, default=0) == size
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: its safetensors header cannot be read ({error}); copy the file again") from error
    if not whole:
        raise InputError(
            f"{path}: {size} bytes, its header says {8 + length + max(ends, default=0)}; copy the file again"
        )
    return header


def _network(metadata: dict[str, str], path: Path) -> dict[str, Any] | None:
    """The ModelInfo as a dict; None in a file that is not unetsharp's."""
    text = metadata.get(METADATA_KEY)
    return dataclasses.asdict(ModelInfo.from_json(text, source=str(path))) if text else None
