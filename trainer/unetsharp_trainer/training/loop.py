"""The epochs: steps, checkpoints, validation, and the best weights on disk at any time."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unetsharp_engines.errors import InputError
from unetsharp_trainer.metrics.confusion import ConfusionMatrix
from unetsharp_trainer.network import UNetSharp
from unetsharp_trainer.training.checkpoint import Progress, save_checkpoint
from unetsharp_trainer.training.distributed import World
from unetsharp_trainer.training.history import History, row_of
from unetsharp_trainer.training.losses import SegmentationLoss
from unetsharp_trainer.training.memory import peak_memory
from unetsharp_trainer.training.optimizers import rate_factor, set_rate, step
from unetsharp_trainer.training.reporter import Advance, Reporter
from unetsharp_trainer.training.sampling import EpochSampler, PatchSource, TrainingWindows, to_input, training_loader
from unetsharp_trainer.training.settings import Recipe, TrainSettings
from unetsharp_trainer.training.validation import validate

__all__ = ["CHECKPOINT", "Loop", "accumulate", "begin_phase"]

CHECKPOINT = "checkpoint.pt"
TELL_SECONDS = 1.0
RECORD_SECONDS = 30.0
"""Least time between two epochs' ends that write files: on a GPU an epoch of few patches takes less than its files."""


def begin_phase(model: UNetSharp, recipe: Recipe, epoch: int) -> None:
    """Set what learns in ``epoch`` (from 0), and how BatchNorm behaves there.

    Frozen, the encoder is in eval mode: it normalizes with the running statistics it came with and leaves them alone,
    so for the decoder it is one fixed function. From then on it is in training mode: its convolutions move, so batch
    statistics normalize and the running ones follow, whether or not the scales and shifts are trained.
    """
    model.train()
    if epoch < recipe.frozen_epochs:
        model.freeze_encoder()
        model.encoder.eval()
    elif recipe.train_norm_affine:
        model.encoder.requires_grad_(True)
    else:
        model.freeze_encoder_norm_affine()


class _Every:
    """Says yes once in so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = time.monotonic()

    def due(self) -> bool:
        now = time.monotonic()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True


@dataclass(kw_only=True)
class Loop:
    """One run from where ``progress`` stands to its last epoch."""

    settings: TrainSettings
    model: UNetSharp
    optimizer: torch.optim.Optimizer
    windows: TrainingWindows
    valid: Sequence[PatchSource]
    world: World
    precision: torch.dtype
    workers: int
    history: History
    reporter: Reporter
    save_weights: Callable[[], None]
    """Writes the model as the best so far."""
    progress: Progress = field(default_factory=Progress)
    _recorded: float = field(default=0, init=False)
    """The epoch, from 1, that the files tell of."""

    def __post_init__(self) -> None:
        recipe = self.settings.recipe
        self.loss = SegmentationLoss(recipe.loss, self.settings.foreground_weight)
        if self.settings.minutes is not None and self.world.size > 1:
            raise InputError("--minutes is for one process: several would stop at different steps; give --epochs")
        self.sampler = EpochSampler(
            patches=len(self.windows),
            batch=recipe.batch,
            world=self.world,
            seed=self.settings.seed,
            epochs=None if self.settings.minutes is not None else recipe.epochs,
        )
        if self.sampler.batches == 0:
            raise InputError(
                f"a batch of {recipe.batch} on {self.world.size} process(es) needs {recipe.batch * self.world.size} "
                f"patches and there are {len(self.windows)}; take --batch {len(self.windows) // self.world.size}"
            )
        self.loader = training_loader(
            self.windows, self.sampler, workers=self.workers, pin=self.world.device.type == "cuda"
        )
        self.forward: nn.Module = torch.compile(self.model) if self.settings.compile else self.model  # type: ignore[assignment]
        self._telling = _Every(TELL_SECONDS)
        self._saving = _Every(60 * self.settings.checkpoint_minutes)
        self._recording = _Every(min(RECORD_SECONDS, 60 * self.settings.checkpoint_minutes))

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch; the last takes the batches that are left."""
        return math.ceil(self.sampler.batches / self.settings.recipe.accumulate)

    def run(self) -> None:
        """Train until the last epoch or minute, or until ``patience`` epochs in a row brought nothing better."""
        recipe, progress = self.settings.recipe, self.progress
        self.sampler.epoch, self.sampler.start = progress.epoch, progress.step * recipe.accumulate
        batches = iter(self.loader)
        images = self.sampler.batches * recipe.batch * self.world.size
        total = None if self.settings.minutes is not None else recipe.epochs * images
        with self.reporter.progress("training", total, "images") as advance:
            advance(progress.epoch * images + progress.step * images / self.steps)
            while not self._over() and not self._out_of_patience():
                self._train_epoch(batches, advance)
                self._end_epoch()
        self._record()

    def _position(self) -> tuple[float, float]:
        """How much of the run is done, and how much there is: seconds where a time was given, else steps."""
        progress, minutes = self.progress, self.settings.minutes
        if minutes is not None:
            return sum(row["seconds"] for row in progress.history) + progress.seconds, 60 * minutes
        return progress.epoch * self.steps + progress.step, self.settings.recipe.epochs * self.steps

    def _over(self) -> bool:
        done, total = self._position()
        return done >= total

    def _out_of_patience(self) -> bool:
        patience, best = self.settings.patience, self.progress.best_epoch
        if not patience or best is None or self.progress.epoch - best <= patience:
            return False
        self.reporter.say(f"stopped: no better validation Dice in the {patience} epochs after epoch {best + 1}")
        return True

    def _train_epoch(self, batches: Iterator[tuple[Tensor, Tensor]], advance: Advance) -> None:
        recipe, progress = self.settings.recipe, self.progress
        begin_phase(self.model, recipe, progress.epoch)
        replica = self._replica()
        loss_sum = torch.tensor(progress.loss_sum, dtype=torch.float64, device=self.world.device)
        began = time.monotonic() - progress.seconds
        for index in range(progress.step, self.steps):
            passes = min(recipe.accumulate, self.sampler.batches - index * recipe.accumulate)
            set_rate(self.optimizer, rate_factor(recipe, *self._position()) * recipe.learning_rate)
            loss_sum += self._step(replica, batches, passes)
            progress.step, progress.seconds = index + 1, time.monotonic() - began
            advance(passes * recipe.batch * self.world.size)
            if self._telling.due():  # reading the sum waits for the GPU, so not at every step
                progress.loss_sum = float(loss_sum)
                advance(0, self._headline())
            if self._saving.due():
                progress.loss_sum = float(loss_sum)
                self._save()
            if self.settings.minutes is not None and self._over():
                break
        progress.loss_sum = float(loss_sum)
        progress.seconds = time.monotonic() - began  # once the GPU has done what it was given

    def _step(self, replica: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], passes: int) -> Tensor:
        """One optimizer step on the gradient of ``passes`` batches; returns the sum of their losses."""
        self.optimizer.zero_grad()
        total = accumulate(replica, self.loss, batches, passes, self.world.device, self.precision)
        step(self.optimizer)
        return total

    def _replica(self) -> nn.Module:
        """What is called forward: among processes, a wrapper that averages gradients of what learns in this epoch."""
        if self.world.size == 1:
            return self.forward
        return DistributedDataParallel(self.forward)

    def _end_epoch(self) -> None:
        progress, recipe = self.progress, self.settings.recipe
        batches = min(progress.step * recipe.accumulate, self.sampler.batches) * self.world.size
        loss = float(self.world.total(np.array([progress.loss_sum]))[0]) / batches
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is {loss} in epoch {progress.epoch + 1}; take a lower --lr than {recipe.learning_rate}"
            )
        self.world.share_buffers(self.model)
        matrix, valid_loss = self._validate()
        progress.history.append(
            row_of(
                epoch=progress.epoch + 1,
                rate=float(self.optimizer.param_groups[0]["lr"]),
                loss=loss,
                valid_loss=valid_loss,
                matrix=matrix,
                images_per_second=batches * recipe.batch / progress.seconds,
                seconds=progress.seconds,
                memory_mb=peak_memory(self.world.device) / 2**20,
            )
        )
        self._keep_best(matrix)
        progress.epoch, progress.step, progress.loss_sum, progress.seconds = progress.epoch + 1, 0, 0.0, 0.0
        if self._recording.due():
            self._record()

    def _record(self) -> None:
        """Bring all files up to date with the last finished epoch, and tell of it."""
        rows = self.progress.history
        if not self.world.leads or not rows or rows[-1]["epoch"] == self._recorded:
            return
        self._recorded = rows[-1]["epoch"]
        if not self.valid:
            self.save_weights()
        self._save()
        self.history.write(rows)
        self.reporter.say(self.history.line(rows, self._of_epochs(), self._seconds_left()))

    def _of_epochs(self) -> str:
        return "" if self.settings.minutes is not None else f"/{self.settings.recipe.epochs}"

    def _seconds_left(self) -> float:
        """By the clock, or at the last epoch's pace."""
        done, total = self._position()
        pace = 1.0 if self.settings.minutes is not None else self.progress.history[-1]["seconds"] / self.steps
        return max(0.0, (total - done) * pace)

    def _validate(self) -> tuple[ConfusionMatrix | None, float]:
        if not self.valid:
            return None, math.nan
        return validate(self.model, self.valid, self.loss, self.world, self.precision)

    def _keep_best(self, matrix: ConfusionMatrix | None) -> None:
        """Write the best epoch's weights at once; without validation the last is the best, and `_record` writes it."""
        if matrix is None:
            self.progress.best_epoch = self.progress.epoch
            return
        score = self._score(matrix)
        if score <= self.progress.best_dice:
            return
        self.progress.best_epoch, self.progress.best_dice = self.progress.epoch, score
        if self.world.leads:
            self.save_weights()

    def _score(self, matrix: ConfusionMatrix) -> float:
        """Pooled Dice; with a foreground term, its mean with the foreground Dice. What the truth lacks counts as 0."""
        scores = [matrix.pooled_dice()] + [matrix.foreground_dice()] * (self.settings.foreground_weight > 0)
        return sum(0.0 if math.isnan(score) else score for score in scores) / len(scores)

    def _headline(self) -> str:
        progress = self.progress
        loss = progress.loss_sum / min(progress.step * self.settings.recipe.accumulate, self.sampler.batches)
        return f"epoch {progress.epoch + 1}{self._of_epochs()} loss {loss:.4f}"

    def _save(self) -> None:
        if self.world.leads:
            path = self.settings.out / CHECKPOINT
            save_checkpoint(path, self.model, self.optimizer, self.progress, self.settings.fingerprint())


def accumulate(
    model: nn.Module,
    loss: nn.Module,
    batches: Iterator[tuple[Tensor, Tensor]],
    passes: int,
    device: torch.device,
    precision: torch.dtype,
) -> Tensor:
    """Add the gradient of the mean loss of the next ``passes`` batches to ``model``; returns the losses' sum, float64.

    Each batch's loss is its own: for a loss that is a mean over pixels the gradient is that of one large batch, for
    Tversky's and Dice's ratios it is the mean of the batches' gradients. Processes average theirs after the last pass.
    """
    total = torch.zeros((), dtype=torch.float64, device=device)
    for number in range(passes):
        images, targets = next(batches)
        with _unsynced(model) if number + 1 < passes else nullcontext():
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                logits = model(to_input(images, device))
            value = loss(logits, targets.to(device, non_blocking=True))
            (value / passes).backward()
        total += value.detach()
    return total


def _unsynced(replica: nn.Module) -> Any:
    return replica.no_sync() if isinstance(replica, DistributedDataParallel) else nullcontext()
