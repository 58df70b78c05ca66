"""What this machine is: memory, NVIDIA GPUs, driver, Jetson. The system is asked, never torch or TensorRT."""

import ctypes
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Gpu",
    "cuda_version",
    "driver_version",
    "gpus",
    "jetson_release",
    "memory_bytes",
    "os_and_arch",
    "pci_bus_id",
    "processor_name",
]

_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of the CUDA driver API."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One NVIDIA GPU."""

    name: str
    target: str
    """Compute capability as TensorRT's builder names it: ``sm86`` is 8.6."""
    memory_bytes: int


def gpus() -> tuple[Gpu, ...]:
    """NVIDIA GPUs that the CUDA driver shows this process (``CUDA_VISIBLE_DEVICES`` counts); none without a driver."""
    driver = _driver()
    count = ctypes.c_int()
    if driver is None or driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    return tuple(_gpu(driver, index) for index in range(count.value))


def pci_bus_id() -> str | None:
    """Where the first of `gpus`, which is the one that all runtimes use, sits: e.g. ``0000:3b:00.0``; None without one.

    Other libraries count GPUs in another order, or those that this process may not use, too.
    """
    driver = _driver()
    device, text = ctypes.c_int(), ctypes.create_string_buffer(32)
    if driver is None or driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    return None if driver.cuDeviceGetPCIBusId(text, len(text), device) else text.value.decode()


def cuda_version() -> str | None:
    """Newest CUDA that the installed driver supports, e.g. ``13.0``; None without a driver."""
    driver = _driver()
    version = ctypes.c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)):
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def driver_version() -> str | None:
    """Version of the NVIDIA kernel driver, e.g. ``580.65.06``; None where Linux tells none."""
    path = Path("/proc/driver/nvidia/version")
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", path.read_text(encoding="utf-8")) if path.is_file() else None
    return found.group() if found else None


def jetson_release() -> str | None:
    """First line of a Jetson's release file, e.g. ``# R36 (release), REVISION: 3.0``; None on other machines."""
    path = Path("/etc/nv_tegra_release")
    return path.read_text(encoding="utf-8").splitlines()[0] if path.is_file() else None


def memory_bytes() -> int | None:
    """Bytes of main memory; None where the system does not tell."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def processor_name() -> str:
    """What the processor is called, as far as the system tells: e.g. ``Intel(R) Xeon(R) Platinum 8488C``."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", path.read_text(encoding="utf-8"), re.M) if path.is_file() else None
    return found.group(1) if found else platform.processor() or platform.machine()


def os_and_arch() -> str:
    """Operating system and processor architecture, e.g. ``linux-x86_64``."""
    return f"{platform.system().lower()}-{platform.machine().lower()}"


def _driver() -> ctypes.CDLL | None:
    """The CUDA driver's library, or None where there is none."""
    try:
        return ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None


def _gpu(driver: ctypes.CDLL, index: int) -> Gpu:
    device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    target = f"sm{_attribute(driver, device, _MAJOR)}{_attribute(driver, device, _MINOR)}"
    return Gpu(name=name.value.decode(errors="replace"), target=target, memory_bytes=memory.value)


def _attribute(driver: ctypes.CDLL, device: ctypes.c_int, attribute: int) -> int:
    value = ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return value.value
