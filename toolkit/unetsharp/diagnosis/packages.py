"""Which packages are here, at which version, and what they say of themselves."""

import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["installed"]


@dataclass(frozen=True, kw_only=True)
class _Package:
    module: str
    purpose: str
    probe: Callable[[Any], str] | None = None
    """What the loaded module says of this machine. Packages without one are not loaded."""


def _providers(onnxruntime: Any) -> str:
    return ", ".join(name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())


def _rtx_targets(trt: Any) -> str:
    return "builds for " + ", ".join(
        name.lower() for name in trt.ComputeCapability.__members__ if name.startswith("SM")
    )


def _torch_device(torch: Any) -> str:
    return "sees the GPU" if torch.cuda.is_available() else "CPU only"


_PACKAGES = (
    _Package(module="onnxruntime", purpose="runs ONNX", probe=_providers),
    _Package(module="onnx", purpose="reads ONNX"),
    _Package(module="torch", purpose="trains, runs weights, exports"),
    _Package(module="timm", purpose="encoders"),
    _Package(module="albumentations", purpose="augments training tiles"),
    _Package(module="onnxscript", purpose="exports ONNX"),
    _Package(module="onnxsim", purpose="simplifies ONNX"),
    _Package(module="tensorrt_rtx", purpose="builds engines without a GPU", probe=_rtx_targets),
    _Package(module="tensorrt", purpose="builds engines on their GPU", probe=lambda _: "loads"),
    _Package(module="pycuda", purpose="memory and launches on the GPU"),
    _Package(module="cuda", purpose="CUDA graphs"),
    _Package(module="PIL", purpose="reads PNG, JPEG"),
    _Package(module="tifffile", purpose="reads TIFF"),
    _Package(module="imagecodecs", purpose="decompresses TIFF"),
    _Package(
        module="openslide", purpose="reads scanners' own slides", probe=lambda openslide: openslide.__library_version__
    ),
)


def installed(*, load_torch: bool) -> list[dict[str, str | None]]:
    """One entry a package: ``package``, ``version`` (None where it is missing), ``purpose``, ``note``."""
    names = importlib.metadata.packages_distributions()
    return [_entry(package, names.get(package.module, []), load_torch) for package in _PACKAGES]


def _entry(package: _Package, distributions: list[str], load_torch: bool) -> dict[str, str | None]:
    name = distributions[0] if distributions else package.module
    version = importlib.metadata.version(name) if distributions else None
    probe = _torch_device if package.module == "torch" and load_torch else package.probe
    note = _note(package.module, probe) if version and probe else ""
    return {"package": name, "version": version, "purpose": package.purpose, "note": note}


def _note(module: str, probe: Callable[[Any], str]) -> str:
    try:
        return probe(importlib.import_module(module))
    except (ImportError, OSError) as error:  # OSError: its shared libraries do not load
        return f"installed, but does not load: {error}"
