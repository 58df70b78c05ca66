"""Which window comes when: a function of the seed alone, so that any process can go on from any place."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from unetsharp_engines.contract import BYTES_TO_UNIT
from unetsharp_trainer.training.distributed import World

__all__ = ["EpochSampler", "PatchSource", "TrainingWindows", "to_input", "training_loader"]

Bytes = npt.NDArray[np.uint8]
Key = tuple[int, int]
"""Epoch and patch index: all that a window's augmentation depends on, beside the run's seed."""


class PatchSource(Protocol):
    """What is trained on: stain-normalized patches and their targets, as arrays or memory maps."""

    images: Bytes
    """[N, H, W, 3] RGB."""
    targets: Bytes
    """[N, H, W] channel index 0 to 5, or 255 where a nucleus's class is unknown."""


class Augmentation(Protocol):
    """What `unetsharp_trainer.data.augment` makes."""

    def seed(self, seed: Sequence[int]) -> None:
        """Restart its randomness."""

    def __call__(self, image: Bytes, target: Bytes) -> tuple[Bytes, Bytes]:
        """Transform both together."""


class TrainingWindows(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Augmented windows by `Key`: uint8 [size, size, 3] and uint8 [size, size].

    The augmentation's randomness restarts from (seed, epoch, index) for each window, so neither the number of worker
    processes nor a resumed run changes a pixel.
    """

    def __init__(self, sources: Sequence[PatchSource], augmentation: Augmentation, seed: int) -> None:
        self.sources = sources
        self.augmentation = augmentation
        self.seed = seed
        self._ends = np.cumsum([len(source.images) for source in sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, index = key
        which = int(np.searchsorted(self._ends, index, side="right"))
        source, within = self.sources[which], index - (int(self._ends[which - 1]) if which else 0)
        self.augmentation.seed((self.seed, epoch, index))
        image, target = self.augmentation(np.asarray(source.images[within]), np.asarray(source.targets[within]))
        return _tensor(image), _tensor(target)


@dataclass(kw_only=True)
class EpochSampler(Sampler[Key]):
    """Keys of one process from ``epoch``'s batch ``start`` to the end of the last epoch, a permutation for each.

    One iterator for the whole run, so that reading runs on from one epoch into the next: beside a GPU an epoch can be
    shorter than refilling the loader. An epoch is cut to whole batches on all processes; what is left over differs
    from epoch to epoch.
    """

    patches: int
    batch: int
    world: World
    seed: int
    epochs: int | None
    """Epochs in all; None goes on for as long as it is asked."""
    epoch: int = 0
    start: int = 0

    @property
    def batches(self) -> int:
        """Batches of one process in an epoch."""
        return self.patches // (self.batch * self.world.size)

    def __iter__(self) -> Iterator[Key]:
        yield from self._keys(self.epoch)[self.start * self.batch :]
        for epoch in count(self.epoch + 1) if self.epochs is None else range(self.epoch + 1, self.epochs):
            yield from self._keys(epoch)

    def _keys(self, epoch: int) -> list[Key]:
        order = np.random.default_rng((self.seed, epoch)).permutation(self.patches)
        mine = order[self.world.rank :: self.world.size][: self.batches * self.batch]
        return [(epoch, int(index)) for index in mine]


def training_loader(
    windows: TrainingWindows, sampler: EpochSampler, *, workers: int, pin: bool
) -> DataLoader[tuple[torch.Tensor, torch.Tensor]]:
    """Batches uint8 [B, size, size, 3] and uint8 [B, size, size]."""
    return DataLoader(
        windows,
        batch_size=sampler.batch,
        sampler=sampler,
        num_workers=workers,
        pin_memory=pin,
    )


def to_input(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 [N, H, W, 3] → float32 [N, 3, H, W] in 0..1 on ``device``, channels last in memory."""
    return images.to(device, non_blocking=True).permute(0, 3, 1, 2).float().mul_(BYTES_TO_UNIT)


def _tensor(array: Bytes) -> torch.Tensor:
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))  # patches are read-only maps
