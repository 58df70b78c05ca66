"""The weights file: safetensors holding every tensor of a U-Net#, with its ModelInfo as metadata."""

import dataclasses
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from unetsharp_engines import __version__
from unetsharp_engines.errors import InputError
from unetsharp_engines.files import replacing, sha256_of
from unetsharp_engines.model_info import METADATA_KEY, ModelInfo
from unetsharp_trainer.network.unetsharp import UNetSharp

__all__ = ["load_weights", "save_weights"]


def save_weights(path: Path, model: UNetSharp, info: ModelInfo, *, half: bool = False) -> None:
    """Write ``model`` and ``info`` to ``path``, whole or not at all; ``tool_version`` is filled in.

    ``half`` stores the convolutions' weights in float16, for half the size; norms, biases and running statistics,
    which are few and can leave float16's range, stay float32. Raises ValueError if ``info`` describes another network,
    InputError where a weight exceeds float16.
    """
    if (info.encoder, info.width) != (model.encoder_name, model.width):
        raise ValueError(f"the model is {model.encoder_name} of width {model.width}, its info says {info}")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if half:
        tensors = {name: _half(name, tensor) for name, tensor in tensors.items()}
    stored = dataclasses.replace(info, weights_sha256="", tool_version=__version__)
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={METADATA_KEY: stored.to_json()})


def load_weights(path: Path) -> tuple[UNetSharp, ModelInfo]:
    """Read what `save_weights` wrote: the network (float32, eval mode, CPU) and its info with the file's hash.

    Never executes code. Raises InputError, in one line, for anything else.
    """
    info = dataclasses.replace(_read_info(path), weights_sha256=sha256_of(path))
    model = UNetSharp(info.encoder, info.width)
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"{path}: {_mismatch(model, path)}") from error
    return model.eval(), info


def _read_info(path: Path) -> ModelInfo:
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a weights file (.safetensors) that `unetsharp train` wrote")
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except SafetensorError as error:
        raise InputError(
            f"{path}: not a whole safetensors file ({error}); give weights `unetsharp train` wrote"
        ) from error
    if METADATA_KEY not in metadata:
        raise InputError(
            f"{path}: safetensors, but not unetsharp's (no {METADATA_KEY!r} metadata); see `unetsharp train`"
        )
    return ModelInfo.from_json(metadata[METADATA_KEY], source=str(path))


def _half(name: str, tensor: Tensor) -> Tensor:
    if tensor.ndim < 2:
        return tensor
    half = tensor.half()
    if not torch.isfinite(half).all():
        raise InputError(f"{name} holds {tensor.abs().max():g}, beyond float16's 65504; store it in float32")
    return half


def _mismatch(model: UNetSharp, path: Path) -> str:
    """Say in one line how the file's tensors differ from the network its metadata describes."""
    with safe_open(path, framework="pt") as file:
        stored = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no mapping)
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    wrong = next(name for name in sorted(stored.keys() | expected) if stored.get(name) != expected.get(name))
    return (
        f"its tensors are not those of {model.encoder_name} of width {model.width}: "
        f"{wrong} is {stored.get(wrong, 'absent')}, {expected.get(wrong, 'absent')} was expected"
    )
