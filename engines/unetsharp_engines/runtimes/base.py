"""What every runtime does: stain-normalize a batch of tiles, run the network, say what each pixel is."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from unetsharp_engines.contract import BYTES_TO_UNIT, LABEL_OF_CHANNEL, MAX_SIDE, SIDE_MULTIPLE
from unetsharp_engines.errors import InputError
from unetsharp_engines.model_info import ModelInfo
from unetsharp_engines.stain import StainPlan

__all__ = ["Runtime", "check_tiles", "network_input"]

_R = TypeVar("_R", bound="Runtime")


class Runtime(ABC):
    """A network, loaded and ready to be fed batches of tiles.

    A runtime implements `_logits`, and overrides `_probabilities` and `_labels` where it can do better than by way of
    logits on the CPU. What it is given there has been checked. Used as a context manager it closes itself.
    """

    def __init__(self, *, info: ModelInfo, name: str, version: str, device: str) -> None:
        self.info = info
        """What the network is."""
        self.name = name
        """What people call the runtime, as ``--runtime`` takes it: ``onnxruntime``."""
        self.version = version
        """Version of the library that runs the network."""
        self.device = device
        """Where it runs: ``cpu``, or the GPU's name."""

    @property
    def batch(self) -> int:
        """Tiles to give in one call where nobody asks for another number."""
        return 8

    def logits(self, tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan) -> npt.NDArray[np.float32]:
        """The network's outputs, float32 [N, 6, H, W], channels as `contract.CLASSES`.

        ``tiles_NHWC`` is uint8 RGB [N, H, W, 3] as scanned: normalization by ``stain`` is part of the run. H and W
        are multiples of `SIDE_MULTIPLE` up to `MAX_SIDE`, N at least 1, of any size; else InputError.
        """
        check_tiles(tiles_NHWC)
        return self._logits(tiles_NHWC, stain)

    def probabilities(self, tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan) -> npt.NDArray[np.float32]:
        """Class probabilities, float32 [N, 6, H, W], 0 to 1, summing to 1 over the channels. Input as `logits`."""
        check_tiles(tiles_NHWC)
        return self._probabilities(tiles_NHWC, stain)

    def probabilities_of(
        self, batches: Iterable[npt.NDArray[np.uint8]], stain: StainPlan
    ) -> Iterator[npt.NDArray[np.float32]]:
        """`probabilities` of each batch in turn. A runtime on a GPU works on the next one meanwhile."""
        for tiles_NHWC in batches:
            yield self.probabilities(tiles_NHWC, stain)

    def labels(self, tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan) -> npt.NDArray[np.uint8]:
        """Label images, uint8 [N, H, W], of the most probable class: background 0, nuclei 1 to 5. Input as `logits`."""
        check_tiles(tiles_NHWC)
        return self._labels(tiles_NHWC, stain)

    def labels_of(self, batches: Iterable[npt.NDArray[np.uint8]], stain: StainPlan) -> Iterator[npt.NDArray[np.uint8]]:
        """`labels` of each batch in turn, as `probabilities_of`."""
        for tiles_NHWC in batches:
            yield self.labels(tiles_NHWC, stain)

    def close(self) -> None:  # noqa: B027 - most runtimes hold nothing
        """Give back what the runtime holds. It is of no use afterwards; closing again does nothing."""

    def __enter__(self: _R) -> _R:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def _logits(self, tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan) -> npt.NDArray[np.float32]:
        """`logits` of checked tiles."""

    def _probabilities(self, tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan) -> npt.NDArray[np.float32]:
        """`probabilities` of checked tiles."""
        return _softmax(self._logits(tiles_NHWC, stain))

    def _labels(self, tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan) -> npt.NDArray[np.uint8]:
        """`labels` of checked tiles."""
        labels: npt.NDArray[np.uint8] = LABEL_OF_CHANNEL[self._logits(tiles_NHWC, stain).argmax(axis=1)]
        return labels


def check_tiles(tiles_NHWC: npt.NDArray[np.uint8]) -> None:
    """Raise InputError unless ``tiles_NHWC`` is a batch that a network takes, as `Runtime.logits` says."""
    seen = f"{tiles_NHWC.dtype} {list(tiles_NHWC.shape)}"
    if tiles_NHWC.dtype != np.uint8 or tiles_NHWC.ndim != 4 or tiles_NHWC.shape[-1] != 3:
        raise InputError(f"tiles are {seen}; a runtime takes uint8 RGB [N, H, W, 3]")
    if tiles_NHWC.shape[0] < 1:
        raise InputError(f"tiles are {seen}: none; a runtime takes at least one")
    if not all(0 < side <= MAX_SIDE and side % SIDE_MULTIPLE == 0 for side in tiles_NHWC.shape[1:3]):
        raise InputError(f"tiles are {seen}; H and W must be multiples of {SIDE_MULTIPLE} up to {MAX_SIDE}")


def network_input(tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan) -> npt.NDArray[np.float32]:
    """What the network is fed: tiles normalized by ``stain``, as contiguous float32 [N, 3, H, W], 0 to 1."""
    levels_NCHW = stain.apply(tiles_NHWC).transpose(0, 3, 1, 2)
    x_NCHW: npt.NDArray[np.float32] = np.multiply(levels_NCHW, np.float32(BYTES_TO_UNIT), dtype=np.float32, order="C")
    return x_NCHW


def _softmax(logits_NCHW: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    exponentials: npt.NDArray[np.float32] = np.exp(logits_NCHW - logits_NCHW.max(axis=1, keepdims=True))
    exponentials /= exponentials.sum(axis=1, keepdims=True)
    return exponentials
