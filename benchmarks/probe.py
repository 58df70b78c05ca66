"""What one Python has of what the measurements on a GPU need: JSON on standard output, for `on_gpu.py`."""

import importlib
import importlib.metadata
import json
import platform
from dataclasses import dataclass
from typing import Any

__all__ = ["MODULES", "Python"]

MODULES = {
    "tensorrt": "pip install 'unetsharp[gpu]'; on a Jetson it comes with JetPack, for a virtual environment made with "
    "--system-site-packages",
    "pycuda.driver": "pip install pycuda",
    "cuda.bindings.driver": "pip install 'cuda-bindings[all]'",
    "cuda.bindings.nvrtc": "pip install 'cuda-bindings[all]'",
    "torch": "pip install 'unetsharp[export]'",
    "torch.cuda": "install PyTorch for this machine's CUDA, as pytorch.org says",
    "timm": "pip install 'unetsharp[export]'",
    "safetensors": "pip install 'unetsharp[export]'",
    "onnxscript": "pip install 'unetsharp[export]'",
    "onnxsim": "pip install 'unetsharp[export]'",
    "albumentations": "pip install 'unetsharp[train]'",
    "onnx": "pip install onnx",
    "onnxruntime": "pip install onnxruntime",
    "skimage": "pip install scikit-image",
    "rich": "pip install rich",
    "typer": "pip install typer",
    "PIL": "pip install pillow",
    "pytest": "pip install pytest",
}
"""What steps import, and how to get it."""


@dataclass(frozen=True, kw_only=True)
class Python:
    """An interpreter, and what it has."""

    path: str
    version: str
    modules: dict[str, dict[str, str]]
    """By name of `MODULES`: ``version``, and ``error`` where it does not load."""

    def lacking(self, *names: str) -> str:
        """Why it cannot run what imports ``names``; empty if it can."""
        for name in names:
            if error := self.modules[name].get("error"):
                return f"{name} does not load in {self.path} ({error}); {MODULES[name]}"
        return ""

    def versions(self) -> dict[str, str]:
        """Of what loads."""
        seen = {name: entry["version"] for name, entry in self.modules.items() if "version" in entry}
        return {"python": self.version, **seen}


def probed() -> dict[str, Any]:
    """Of this Python."""
    return {"version": platform.python_version(), "modules": {name: _entry(name) for name in MODULES}}


def _entry(name: str) -> dict[str, str]:
    try:
        module = importlib.import_module(name)
        if name == "torch.cuda" and not module.is_available():
            return {"error": "PyTorch sees no GPU"}
    except (ImportError, OSError, RuntimeError, ValueError, AttributeError) as error:  # as parts that do not fit raise
        return {"error": " ".join(str(error).split()) or type(error).__name__}
    return {"version": str(getattr(module, "__version__", None) or _distribution(name))}


def _distribution(module: str) -> str:
    top = module.split(".")[0]
    names = importlib.metadata.packages_distributions().get(top, [])
    return importlib.metadata.version(names[0]) if names else "unknown"


if __name__ == "__main__":
    print(json.dumps(probed()))
