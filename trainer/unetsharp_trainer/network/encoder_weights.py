"""Encoder weights from a local file, with an account of what of it was used."""

import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from unetsharp_engines.errors import InputError

__all__ = ["EncoderWeightsReport", "load_encoder_file"]


@dataclass(frozen=True, kw_only=True)
class EncoderWeightsReport:
    """What became of a weights file's tensors; keys as the encoder's, or the file's where the encoder has none."""

    matched: tuple[str, ...]
    """Loaded."""
    missing: tuple[str, ...]
    """In the encoder, not in the file: these stay random."""
    unexpected: tuple[str, ...]
    """In the file, not in the encoder: ignored. A classifier's last layer belongs here."""
    misshaped: tuple[str, ...]
    """In both, in different shapes: these stay random."""

    def __str__(self) -> str:
        parts = (f"{len(getattr(self, part))} {part}" for part in ("matched", "missing", "unexpected", "misshaped"))
        return "encoder weights: " + ", ".join(parts)


def load_encoder_file(encoder: nn.Module, path: Path) -> EncoderWeightsReport:
    """Copy into ``encoder`` the tensors of ``path`` (safetensors, or torch without code) that fit by name and shape.

    Full classifiers are welcome. Raises InputError for a file that cannot be read or of which nothing fits.
    """
    own = encoder.state_dict()
    given = {_own_key(key, own): tensor for key, tensor in _read(path).items()}
    shared = own.keys() & given.keys()
    fitting = {key: given[key] for key in shared if own[key].shape == given[key].shape}
    if not fitting:
        raise InputError(
            f"{path}: none of its {len(given)} tensors fits the encoder (it has e.g. {_example(given)}, "
            f"the encoder e.g. {_example(own)}); give weights of the same timm model"
        )
    encoder.load_state_dict(fitting, strict=False)
    return EncoderWeightsReport(
        matched=tuple(sorted(fitting)),
        missing=tuple(sorted(own.keys() - given.keys())),
        unexpected=tuple(sorted(given.keys() - own.keys())),
        misshaped=tuple(sorted(shared - fitting.keys())),
    )


def _read(path: Path) -> dict[str, Tensor]:
    """Every tensor of the file by name."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; give encoder weights as safetensors or a torch state dict")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(f"{path}: neither safetensors nor a torch state dict of tensors alone can be read") from error
    if isinstance(loaded, dict):
        loaded = loaded.get("state_dict", loaded)
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise InputError(f"{path}: holds {type(loaded).__name__}, not a state dict of tensors")
    return loaded


def _own_key(key: str, own: dict[str, Tensor]) -> str:
    """The encoder's name for ``key``: some timm feature extractors flatten ``stages.0.conv`` to ``stages_0.conv``."""
    flattened = key.replace(".", "_", 1)
    return flattened if flattened in own else key


def _example(tensors: dict[str, Tensor]) -> str:
    name = next(iter(tensors), None)
    return "none" if name is None else f"{name} {list(tensors[name].shape)}"
