"""Checkpoints: all that a killed run needs to go on as if nothing had happened."""

from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from unetsharp_engines.errors import InputError
from unetsharp_engines.files import replacing

__all__ = ["Progress", "load_checkpoint", "save_checkpoint"]

VERSION = 1
_PARTS = {"version", "fingerprint", "model", "optimizer", "random", "progress"}


@dataclass(kw_only=True)
class Progress:
    """Where a run stands, always between two optimizer steps."""

    epoch: int = 0
    """Epoch under way, from 0."""
    step: int = 0
    """Optimizer steps done in it."""
    loss_sum: float = 0.0
    """Sum of the losses of its forward passes so far."""
    seconds: float = 0.0
    """Time spent on it so far."""
    best_epoch: int | None = None
    best_dice: float = -1.0
    """Pooled validation Dice of the best epoch so far."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One row for each finished epoch."""


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, fingerprint: dict[str, Any]
) -> None:
    """Write ``path`` whole or not at all: tensors, random states and plain values, nothing that loads as code."""
    state = {
        "version": VERSION,
        "fingerprint": fingerprint,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": {"cpu": torch.get_rng_state(), "cuda": _cuda_states()},
        "progress": dict(vars(progress)),
    }
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, fingerprint: dict[str, Any]
) -> Progress:
    """Put ``model``, ``optimizer`` and the random states back, and say where the run stood.

    Reads with ``weights_only``: a checkpoint cannot execute code. Raises InputError for a file that is no checkpoint,
    and for one of a run with other settings, naming the first that differs.
    """
    state = _read(path)
    _require_same(state["fingerprint"], fingerprint, path)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"]["cpu"])
    if torch.cuda.is_available() and state["random"]["cuda"]:
        torch.cuda.set_rng_state_all(state["random"]["cuda"])
    return Progress(**state["progress"])


def _read(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such checkpoint; run without --resume to begin") from error
    except (RuntimeError, EOFError, UnpicklingError) as error:
        raise InputError(f"{path}: no checkpoint of `unetsharp train`; run without --resume to begin anew") from error
    if not isinstance(state, dict) or state.get("version") != VERSION or state.keys() != _PARTS:
        raise InputError(f"{path}: not a checkpoint of this version; run without --resume to begin anew")
    return state


def _require_same(theirs: dict[str, Any], ours: dict[str, Any], path: Path) -> None:
    their_values, our_values = _flat(theirs), _flat(ours)
    for name in sorted(their_values.keys() | our_values.keys()):
        before, now = their_values.get(name), our_values.get(name)
        if before != now:
            raise InputError(f"{path}: begun with {name} {before}, now it is {now}; resume with {name} {before}")


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    recipe: dict[str, Any] = values["recipe"]
    return {name: value for name, value in {**values, **recipe}.items() if name != "recipe"}


def _cuda_states() -> list[torch.Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
