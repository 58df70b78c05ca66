"""The whole chain in PyTorch alone, uint8 in and uint8 out: the peer that an engine has to beat."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from unetsharp.bench import torch_macenko
from unetsharp.export.torch_runtime import chosen_device, load_network
from unetsharp_engines.contract import LABEL_OF_CHANNEL
from unetsharp_engines.runtimes.base import Runtime
from unetsharp_engines.stain import StainPlan

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MODES", "TorchChain"]

MODES: dict[str, str | None] = {
    "torch": None,
    "torch-compile": "reduce-overhead",
    "torch-compile-max": "max-autotune",
}
"""Peers by name, and how ``torch.compile`` makes them; None is eager."""

_SLOTS = 2


class TorchChain(Runtime):
    """Macenko, network and argmax as one PyTorch function, compiled whole if wanted.

    On a GPU the network runs in float16, channels last, and copies go through pinned memory on a stream of their own,
    two batches at a time. On the CPU it runs in float32.
    """

    def __init__(
        self, weights: Path, *, name: str = "torch", batch: int = 16, device: Literal["auto", "cpu", "cuda"] = "auto"
    ) -> None:
        """Load ``weights`` for batches of ``batch`` tiles; ``name`` is one of `MODES`.

        Raises what `unetsharp.export.torch_runtime.TorchRuntime` does.
        """
        network, info = load_network(weights)
        import torch

        self._device = torch.device(chosen_device(device))
        self._on_gpu = self._device.type == "cuda"
        self._batch = batch
        layout: Any = torch.channels_last if self._on_gpu else torch.contiguous_format
        kind = torch.float16 if self._on_gpu else torch.float32
        self._kind = kind
        self._network = network.to(self._device, kind).to(memory_format=layout).eval()
        self._labels_of_channels = torch.from_numpy(LABEL_OF_CHANNEL.copy()).to(self._device)
        mode = MODES[name]
        self._chain = self._labelled if mode is None else torch.compile(self._labelled, mode=mode, dynamic=False)
        self._slots: list[_Slot] = []
        shown = torch.cuda.get_device_name() if self._on_gpu else "cpu"
        super().__init__(info=info, name=name, version=torch.__version__, device=shown)

    @property
    def batch(self) -> int:
        """What it was made for; a batch may have fewer tiles, which take as long."""
        return self._batch

    def close(self) -> None:
        """Free the network's memory."""
        self._slots.clear()
        self.__dict__.pop("_network", None)

    def _logits(self, tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan) -> npt.NDArray[np.float32]:
        import torch

        parts = []
        with torch.inference_mode():
            for start in range(0, len(tiles_NHWC), self._batch):
                tiles = torch.from_numpy(np.ascontiguousarray(tiles_NHWC[start : start + self._batch]))
                x_NCHW = self._normalized(tiles.to(self._device), *self._transform(stain), stain.per_tile)
                parts.append(self._network.logits(x_NCHW).float().cpu().numpy())
        return np.concatenate(parts)

    def _labels(self, tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan) -> npt.NDArray[np.uint8]:
        starts = range(0, len(tiles_NHWC), self._batch)
        return np.concatenate(list(self.labels_of((tiles_NHWC[s : s + self._batch] for s in starts), stain)))

    def labels_of(self, batches: Iterable[npt.NDArray[np.uint8]], stain: StainPlan) -> Iterator[npt.NDArray[np.uint8]]:
        """As `Runtime.labels_of`, two batches under way; each of at most as many tiles as the chain was made for."""
        import torch

        transform = self._transform(stain)

        def run(tiles: "Tensor") -> "Tensor":
            with torch.inference_mode():
                return self._chain(tiles, *transform, stain.per_tile)

        waiting: deque[_Slot] = deque()
        for turn, tiles_NHWC in enumerate(batches):
            if len(waiting) == _SLOTS:
                yield waiting.popleft().collect()
            slot = self._slots_for(tiles_NHWC.shape[1:])[turn % _SLOTS]
            slot.start(tiles_NHWC, run)
            waiting.append(slot)
        while waiting:
            yield waiting.popleft().collect()

    def _labelled(self, tiles_NHWC: "Tensor", matrix_33: "Tensor", offset_3: "Tensor", per_tile: bool) -> "Tensor":
        x_NCHW = self._normalized(tiles_NHWC, matrix_33, offset_3, per_tile)
        return self._labels_of_channels[self._network.logits(x_NCHW).argmax(dim=1)]

    def _normalized(self, tiles_NHWC: "Tensor", matrix_33: "Tensor", offset_3: "Tensor", per_tile: bool) -> "Tensor":
        import torch

        matrix, offset = matrix_33[None], offset_3[None]
        if per_tile:
            matrix, offset, _ = torch_macenko.estimate(tiles_NHWC, matrix_33, offset_3)
        x_NCHW = torch_macenko.apply(tiles_NHWC, matrix, offset).to(self._kind)
        return x_NCHW.contiguous(memory_format=torch.channels_last) if self._on_gpu else x_NCHW.contiguous()

    def _transform(self, stain: StainPlan) -> "tuple[Tensor, Tensor]":
        import torch

        numbers = stain.transform.matrix, stain.transform.offset
        matrix, offset = (torch.from_numpy(array.copy()).to(self._device) for array in numbers)
        return matrix, offset

    def _slots_for(self, tile: tuple[int, ...]) -> "list[_Slot]":
        shape = (self._batch, *tile)
        if not self._slots or self._slots[0].shape != shape:
            self._slots = [_Slot(shape, self._device) for _ in range(_SLOTS)]
        return self._slots


_Run = Callable[["Tensor"], "Tensor"]


class _Slot:
    """A batch's memory: pinned on the host, and on the device; the last batch is filled up with what was there."""

    def __init__(self, shape: tuple[int, ...], device: Any) -> None:
        import torch

        self.shape = shape
        self._on_gpu = device.type == "cuda"
        self._host_in = torch.zeros(shape, dtype=torch.uint8, pin_memory=self._on_gpu)
        self._host_out = torch.zeros(shape[:3], dtype=torch.uint8, pin_memory=self._on_gpu)
        self._tiles = self._host_in.to(device)
        self._copies: Any = torch.cuda.Stream() if self._on_gpu else None  # type: ignore[no-untyped-call]
        self._filled = 0

    def start(self, tiles_NHWC: npt.NDArray[np.uint8], run: _Run) -> None:
        """Send a batch off; what was under way must have been collected."""
        self._filled = len(tiles_NHWC)
        self._host_in.numpy()[: self._filled] = tiles_NHWC
        if self._copies is None:
            self._host_out.copy_(run(self._host_in))
        else:
            self._start_on_gpu(self._copies, run)

    def collect(self) -> npt.NDArray[np.uint8]:
        """Wait for the batch's labels, and return a copy of them."""
        if self._copies is not None:
            self._copies.synchronize()
        labels: npt.NDArray[np.uint8] = self._host_out.numpy()[: self._filled].copy()
        return labels

    def _start_on_gpu(self, copies: Any, run: _Run) -> None:
        import torch

        compute = torch.cuda.current_stream()
        with torch.cuda.stream(copies):
            self._tiles.copy_(self._host_in, non_blocking=True)
        compute.wait_stream(copies)
        labels = run(self._tiles).clone()  # a compiled chain gives the same memory each time
        labels.record_stream(copies)
        copies.wait_stream(compute)
        with torch.cuda.stream(copies):
            self._host_out.copy_(labels, non_blocking=True)
