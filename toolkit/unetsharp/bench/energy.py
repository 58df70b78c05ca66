"""Energy that a GPU takes, by NVML's counter."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from unetsharp import machine

__all__ = ["Energy", "metered"]


@dataclass
class Energy:
    """What a block of work took."""

    joules: float | None = None
    """Of the whole GPU, others' work on it included; None where it cannot be read."""
    why_not: str = ""
    """Why it cannot be read."""


@contextmanager
def metered(device: str) -> Iterator[Energy]:
    """Measure the block's energy on ``device`` (`Runtime.device`: ``cpu`` or a GPU's name)."""
    energy = Energy()
    meter = _meter(device, energy)
    before = meter() if meter else 0
    yield energy
    if meter:
        energy.joules = (meter() - before) / 1e3


def _meter(device: str, energy: Energy) -> Any:
    """A function that reads the GPU's millijoules, or None with the reason in ``energy``."""
    if device == "cpu":
        energy.why_not = "only an NVIDIA GPU's energy is read"
        return None
    try:
        nvml = importlib.import_module("pynvml")
    except ModuleNotFoundError:
        energy.why_not = "NVML is read through nvidia-ml-py: pip install nvidia-ml-py"
        return None
    if (place := machine.pci_bus_id()) is None:
        energy.why_not = "the CUDA driver does not tell which GPU this is"
        return None
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByPciBusId(place)
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError as error:
        energy.why_not = f"NVML does not tell it here ({error})"
        return None
    return lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
