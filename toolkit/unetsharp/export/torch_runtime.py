"""PyTorch as a runtime: the reference that every other form of the network is compared with."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from unetsharp.model_files import ModelKind, form_of
from unetsharp_engines.errors import InputError, MissingCapabilityError
from unetsharp_engines.model_info import ModelInfo
from unetsharp_engines.runtimes.base import Runtime, network_input
from unetsharp_engines.stain import StainPlan

if TYPE_CHECKING:
    from unetsharp_trainer.network import UNetSharp

__all__ = ["TorchRuntime", "chosen_device", "load_network"]


class TorchRuntime(Runtime):
    """A weights file run by PyTorch in float32, TF32 off, on the CPU or a GPU."""

    def __init__(self, weights: Path, *, device: Literal["auto", "cpu", "cuda"] = "auto") -> None:
        """Load ``weights``; ``auto`` takes the GPU where there is one.

        Raises InputError where the file is no weights of unetsharp, MissingCapabilityError without PyTorch or, asked
        for ``cuda``, without a GPU that it sees.
        """
        network, info = load_network(weights)
        import torch

        self._device = chosen_device(device)
        self.network: UNetSharp = network.to(self._device)
        """The network, in evaluation mode."""
        name = torch.cuda.get_device_name() if self._device == "cuda" else "cpu"
        super().__init__(info=info, name="torch", version=torch.__version__, device=name)

    def close(self) -> None:
        """Free the network's memory."""
        self.__dict__.pop("network", None)

    def _logits(self, tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan) -> npt.NDArray[np.float32]:
        import torch

        x_NCHW = torch.from_numpy(network_input(tiles_NHWC, stain)).to(self._device)
        exact: Any = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            logits: npt.NDArray[np.float32] = self.network(x_NCHW).cpu().numpy()
        return logits


def load_network(weights: Path) -> "tuple[UNetSharp, ModelInfo]":
    """The network of a weights file, and what it is. InputError and MissingCapabilityError as `TorchRuntime`."""
    _check_is_no_other(weights)
    try:
        from unetsharp_trainer.network import load_weights
    except ModuleNotFoundError as error:
        raise MissingCapabilityError(
            f"{weights}: to run weights, {error.name} is missing: pip install 'unetsharp[export]'; ONNX runs without"
        ) from error
    return load_weights(weights)


def _check_is_no_other(path: Path) -> None:
    """Raise InputError for another form of a network, and for a folder; anything else is left to be read."""
    form = form_of(path)
    if form not in (None, ModelKind.WEIGHTS):
        raise InputError(f"{path}: {form.named}; give the weights (.safetensors) that it was made of")
    if path.is_dir():
        raise InputError(f"{path}: a folder; give a weights file (.safetensors) that `unetsharp train` wrote")


def chosen_device(device: Literal["auto", "cpu", "cuda"]) -> str:
    """``device``, or for ``auto`` the GPU where PyTorch sees one. MissingCapabilityError for ``cuda`` without one."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise MissingCapabilityError("PyTorch sees no GPU here (`unetsharp doctor` says more); run on the CPU")
    return device
