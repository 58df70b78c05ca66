"""AdaBound as the paper uses it, AdamW for training from random weights, and the learning rate of every step."""

import math
import warnings
from collections.abc import Iterable

import torch
from torch import nn

from unetsharp_trainer.training.settings import Recipe

__all__ = ["build_optimizer", "rate_factor", "set_rate", "step"]

WARM_UP = 0.1
"""Share of AdamW's steps in which the rate rises."""


def build_optimizer(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The recipe's optimizer.

    AdaBound (Luo et al. 2019) has the paper's settings: betas (0.9, 0.999), final rate 0.1, gamma 1e-3, eps 1e-8, no
    weight decay. AdamW decays weights by 0.01 per unit of rate, PyTorch's default.
    """
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=recipe.learning_rate)
    from adabound import AdaBound

    optimizer: torch.optim.Optimizer = AdaBound(
        parameters, lr=recipe.learning_rate, betas=(0.9, 0.999), final_lr=0.1, gamma=1e-3, eps=1e-8, weight_decay=0
    )
    return optimizer


def step(optimizer: torch.optim.Optimizer) -> None:
    """``optimizer.step()`` without the deprecation warning that AdaBound's package, of 2019, gives rise to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"This overload of add", category=UserWarning)
        optimizer.step()


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all parameters the same learning rate for the steps to come."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def rate_factor(recipe: Recipe, index: float, total: float) -> float:
    """Share of the recipe's learning rate, 0 to 1, after ``index`` of ``total`` steps or seconds; no state."""
    if recipe.optimizer == "adabound":
        return 1.0
    warm = max(1.0, WARM_UP * total)
    if index < warm:
        return (index + 1) / (warm + 1)
    return 0.5 * (1 + math.cos(math.pi * (index - warm) / max(1.0, total - warm)))
