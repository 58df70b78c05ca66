"""How fast windows are read and augmented, beside how fast a network can learn from them, on this machine's CPU.

    OMP_NUM_THREADS=1 python benchmarks/loader_speed.py PANNUKE_DIR --out benchmarks/results/loader_speed.json

The loader is the trainer's own: prepared cache, augmentation, worker processes, batches of 8 windows of 224 px. The
network is the edge-sized U-Net# (regnetx_002, c = 16) in float32: forward, loss, backward, AdaBound step. They take
turns, so that whatever else the machine does, it does to all. Wall time is what a run would see; processor time leaves
out waiting for a busy core.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from evidence import evidence, write_json
from unetsharp_trainer.data.augment import Augmentation, paper_augmentation
from unetsharp_trainer.data.pannuke import open_folds
from unetsharp_trainer.data.prepared import PreparedFold, prepare
from unetsharp_trainer.data.wide_augment import wide_augmentation
from unetsharp_trainer.network import UNetSharp
from unetsharp_trainer.training.distributed import World
from unetsharp_trainer.training.losses import SegmentationLoss
from unetsharp_trainer.training.optimizers import build_optimizer, step
from unetsharp_trainer.training.sampling import EpochSampler, TrainingWindows, to_input, training_loader
from unetsharp_trainer.training.settings import PAPER

SIZE, BATCH = 224, 8
CPU = torch.device("cpu")
Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="PanNuke folder")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=8, help="turns each takes")
    parser.add_argument("--batches", type=int, default=16, help="batches a turn")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        folds = prepare(list(open_folds(arguments.data).values()), Path(cache))
        measured = measure(folds, arguments.rounds, arguments.batches)
    sources = ("benchmarks/loader_speed.py", "trainer", "engines/unetsharp_engines/stain")
    report = {
        **evidence("windows of 224 px a second: loader and network", ("albumentations", "numpy", "torch"), sources),
        "patches": sum(map(len, folds)),
        "batch": BATCH,
        "rounds": arguments.rounds,
        "batches_a_round": arguments.batches,
        **measured,
    }
    write_json(arguments.out, report)
    print(json.dumps(report, indent=2))


@dataclass
class Contestant:
    """What takes turns: ``step`` handles one batch; ``ready`` batches of its workers' are waiting, and do not count."""

    step: Callable[[], object]
    ready: int = 0
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def turn(self, batches: int) -> None:
        """Note the seconds a window took, by the wall's clock and by this process's processor time."""
        for _ in range(self.ready):
            self.step()
        wall, processor = time.perf_counter(), time.process_time()
        for _ in range(batches):
            self.step()
        self.wall.append((time.perf_counter() - wall) / (batches * BATCH))
        self.processor.append((time.process_time() - processor) / (batches * BATCH))


def measure(folds: list[PreparedFold], rounds: int, batches: int) -> dict[str, Any]:
    """Windows a second of each contestant, medians over the rounds."""
    paper, wide = paper_augmentation(SIZE), wide_augmentation(SIZE)
    contestants = {
        "read_only": Contestant(partial(next, loader(folds, Untouched(), workers=0))),
        "paper_in_process": Contestant(partial(next, loader(folds, paper, workers=0))),
        "paper_1_worker": Contestant(partial(next, loader(folds, paper, workers=1)), ready=2),
        "paper_2_workers": Contestant(partial(next, loader(folds, paper, workers=2)), ready=4),
        "wide_in_process": Contestant(partial(next, loader(folds, wide, workers=0))),
        "edge_network": Contestant(training_step(next(loader(folds, paper, workers=0)))),
    }
    for contestant in contestants.values():
        contestant.step()  # imports in the workers, caches
    for _ in range(rounds):
        for contestant in contestants.values():
            contestant.turn(batches)
    alone = [name for name in contestants if "worker" not in name]  # workers' processor time is not this process's
    by_processor = {name: round(1 / statistics.median(contestants[name].processor), 1) for name in alone}
    return {
        "windows_a_second": {name: round(1 / statistics.median(c.wall), 1) for name, c in contestants.items()},
        "windows_a_processor_second": by_processor,
        "loader_cores_for_one_core_of_network": {
            name: round(by_processor["edge_network"] / by_processor[name], 2)
            for name in ("read_only", "paper_in_process", "wide_in_process")
        },
    }


class Untouched(Augmentation):
    """The window cut from the patch's corner, nothing else: what reading and batching cost."""

    def __init__(self) -> None:
        pass

    def seed(self, seed: Any) -> None:
        """Nothing here is random."""

    def __call__(self, image: Any, target: Any) -> Any:
        """Cut."""
        return image[:SIZE, :SIZE], target[:SIZE, :SIZE]


def loader(folds: list[PreparedFold], augmentation: Augmentation, *, workers: int) -> Batches:
    """Batches without end, epoch after epoch."""
    windows = TrainingWindows(folds, augmentation, seed=0)
    sampler = EpochSampler(patches=len(windows), batch=BATCH, world=World(), seed=0, epochs=None)
    return iter(training_loader(windows, sampler, workers=workers, pin=False))


def training_step(batch: tuple[torch.Tensor, torch.Tensor]) -> Callable[[], object]:
    """Train the edge-sized network on ``batch``: forward, loss, backward, step."""
    model = UNetSharp("regnetx_002", 16).train().to(memory_format=torch.channels_last)
    loss, optimizer = SegmentationLoss("paper"), build_optimizer(PAPER, model.parameters())

    def train() -> None:
        optimizer.zero_grad()
        loss(model.logits(to_input(batch[0], CPU)), batch[1]).backward()
        step(optimizer)

    return train


if __name__ == "__main__":
    main()
