"""torchstain, which many pipelines normalize stains with: the peer of the stain step alone."""

import importlib
import statistics
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from unetsharp_engines.errors import MissingCapabilityError

__all__ = ["NAME", "check_installed", "seconds_per_tile"]

NAME = "torchstain"
"""As ``--against`` calls it."""

_ROUNDS = 3


def check_installed() -> None:
    """Raise MissingCapabilityError unless it is."""
    try:
        importlib.import_module("torchstain.torch.normalizers.macenko")
    except ModuleNotFoundError as error:
        missing = f"--against {NAME}: {error.name} is missing"
        raise MissingCapabilityError(f"{missing}: pip install 'unetsharp[train]'") from error


def seconds_per_tile(tiles_NHWC: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Median time of one tile's estimation and normalization by torchstain as it ships, by device.

    ``cpu``, and ``cuda`` where PyTorch sees a GPU. It takes one tile at a time, and raises for some without tissue, so
    every tile must have an estimate.
    """
    import torch
    from torchstain.torch.normalizers.macenko import TorchMacenkoNormalizer

    devices = ["cpu", *["cuda"] * torch.cuda.is_available()]
    return {device: _median_seconds(torch, TorchMacenkoNormalizer(), tiles_NHWC, device) for device in devices}


def _median_seconds(torch: Any, normalizer: Any, tiles_NHWC: npt.NDArray[np.uint8], device: str) -> float:
    planes = [torch.from_numpy(tile.copy()).permute(2, 0, 1).to(device) for tile in tiles_NHWC]
    normalizer.HERef, normalizer.maxCRef = normalizer.HERef.to(device), normalizer.maxCRef.to(device)
    times = []
    for plane in [planes[0], *planes * _ROUNDS]:
        start = time.perf_counter()
        normalizer.normalize(plane, stains=False)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first warms up
