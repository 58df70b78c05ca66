"""What this machine can do, and for what is missing, the command that installs it."""

import os
import platform
from typing import Any

from unetsharp import machine
from unetsharp.build.trust import has_key, key_path
from unetsharp.diagnosis.abilities import what_works
from unetsharp.diagnosis.packages import installed
from unetsharp_engines import __version__

__all__ = ["diagnose"]


def diagnose(*, load_torch: bool) -> dict[str, Any]:
    """Facts for JSON: ``machine``, ``packages``, ``commands``. PyTorch, slow to load, is loaded if ``load_torch``."""
    return {
        "unetsharp": __version__,
        "machine": _machine(),
        "packages": installed(load_torch=load_torch),
        "commands": what_works(),
    }


def _machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": machine.os_and_arch(),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": machine.memory_bytes(),
        "gpus": [vars(gpu) for gpu in machine.gpus()],
        "driver": machine.driver_version(),
        "cuda": machine.cuda_version(),
        "jetson": machine.jetson_release(),
        "engine_key": str(key_path()) if has_key() else None,
    }
