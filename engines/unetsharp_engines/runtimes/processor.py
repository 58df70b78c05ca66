"""What this machine's processor multiplies right."""

import platform
from pathlib import Path

__all__ = ["sums_int8_exactly"]

_CPUINFO = Path("/proc/cpuinfo")
_EXACT = {"avx512_vnni", "avx_vnni"}


def sums_int8_exactly() -> bool:
    """Whether products of unsigned and signed bytes are added up without overflow.

    On x86-64 that takes VNNI (Intel from Ice Lake on, AMD from Zen 4 on): older processors add two products in 16 bits,
    which end before 2 · 255 · 127. False where it cannot be known; always true on other architectures.
    """
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        return True
    flags = set(_CPUINFO.read_text().split()) if _CPUINFO.is_file() else set()
    return bool(flags & _EXACT)
