"""A whole training run: data, network, epochs, weights, and the page that shows what came of it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from unetsharp_engines.contract import CLASSES
from unetsharp_engines.errors import InputError, MissingCapabilityError
from unetsharp_engines.model_info import ModelInfo
from unetsharp_trainer.data.augment import Augmentation, paper_augmentation
from unetsharp_trainer.data.pannuke import UNKNOWN, Fold, open_folds, parse_folds
from unetsharp_trainer.data.parallel import usable_cores
from unetsharp_trainer.data.prepared import CACHE_NAME, PreparedFold, StainScope, prepare
from unetsharp_trainer.data.wide_augment import wide_augmentation
from unetsharp_trainer.network import UNetSharp, load_weights, save_weights
from unetsharp_trainer.training.checkpoint import load_checkpoint
from unetsharp_trainer.training.distributed import World, joined
from unetsharp_trainer.training.history import History
from unetsharp_trainer.training.loop import CHECKPOINT, Loop
from unetsharp_trainer.training.optimizers import build_optimizer
from unetsharp_trainer.training.pictures import write_page
from unetsharp_trainer.training.reporter import Reporter
from unetsharp_trainer.training.sampling import TrainingWindows
from unetsharp_trainer.training.settings import TrainSettings

__all__ = ["WEIGHTS", "TrainResult", "train"]

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a finished run amounts to."""

    weights: Path
    best_epoch: int
    """From 1: the epoch whose weights these are."""
    epochs: int
    """Epochs trained in all."""
    history: list[dict[str, float]]
    untaught: tuple[str, ...]
    seconds: float
    """Wall time of this call, preparation included."""


@dataclass(frozen=True, kw_only=True)
class _Data:
    train: Sequence[PreparedFold]
    valid: Sequence[PreparedFold]
    test: Sequence[PreparedFold]


def train(settings: TrainSettings, reporter: Reporter, *, resume: bool = False) -> TrainResult:
    """Train as ``settings`` say and leave weights, history, curves, logs and a page of pictures in ``settings.out``.

    ``resume`` goes on from the checkpoint there, as if the run had never stopped. Under ``torchrun`` every process
    calls this alike; the first one writes. On the CPU the same seed gives the same numbers.
    Raises InputError for what cannot be trained on or with, MissingCapabilityError for a device that is not there.
    """
    began = time.monotonic()
    device = _device(settings.device)
    _require_room_for_run(settings.out, resume)
    with _repeatable(settings.seed, device), joined(device) as world, closing(History(settings.out)) as history:
        data = _prepared(settings, reporter)
        untaught = _describe_classes(data.train, reporter)
        loop = _loop(settings, data, world, untaught, history, reporter)
        if resume:
            path = settings.out / CHECKPOINT
            loop.progress = load_checkpoint(path, loop.model, loop.optimizer, settings.fingerprint())
            reporter.say(
                f"going on in epoch {loop.progress.epoch + 1} after {loop.progress.step} of {loop.steps} steps"
            )
        loop.run()
        if world.leads:
            _show(settings, data, world, loop.precision)
    return TrainResult(
        weights=settings.out / WEIGHTS,
        best_epoch=(loop.progress.best_epoch or 0) + 1,
        epochs=loop.progress.epoch,
        history=loop.progress.history,
        untaught=untaught,
        seconds=time.monotonic() - began,
    )


def _loop(
    settings: TrainSettings,
    data: _Data,
    world: World,
    untaught: tuple[str, ...],
    history: History,
    reporter: Reporter,
) -> Loop:
    recipe = settings.recipe
    model = UNetSharp(settings.encoder, settings.width, _encoder_weights(settings.encoder_weights))
    if model.encoder_report is not None:
        reporter.say(str(model.encoder_report))
    model.silence_classes([c.channel for c in CLASSES if c.name in untaught])
    if not recipe.pooling:
        model.silence_pooling()
    model = model.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    info = _info(settings, untaught)
    return Loop(
        settings=settings,
        model=model,
        optimizer=build_optimizer(recipe, model.parameters()),
        windows=TrainingWindows(data.train, _augmentation(recipe.augmentation, recipe.size), settings.seed),
        valid=data.valid,
        world=world,
        precision=_precision(settings.precision, world.device),
        workers=_workers(settings.workers, world.device),
        history=history,
        reporter=reporter,
        save_weights=lambda: save_weights(settings.out / WEIGHTS, model, info),
    )


def _prepared(settings: TrainSettings, reporter: Reporter) -> _Data:
    plan = parse_folds(settings.folds)
    folds = open_folds(settings.data)
    missing = sorted(set(plan.all) - folds.keys())
    if missing:
        raise InputError(f"{settings.data}: no fold {missing[0]}; --folds can name {', '.join(map(str, folds))}")
    prepared = {number: _prepare(folds[number], settings, reporter) for number in plan.all}
    parts = {name: [prepared[number] for number in getattr(plan, name)] for name in ("train", "valid", "test")}
    reporter.say(", ".join(f"{name} {sum(map(len, part))} patches" for name, part in parts.items()))
    return _Data(**parts)


def _prepare(fold: Fold, settings: TrainSettings, reporter: Reporter) -> PreparedFold:
    stain: StainScope = "none" if settings.stain == "none" else "tile"
    with reporter.progress(f"preparing fold {fold.number}", len(fold), "patches") as advance:
        (prepared,) = prepare([fold], settings.cache or settings.data / CACHE_NAME, stain=stain, advance=advance)
    if prepared.flagged:
        reporter.say(f"fold {fold.number}: {len(prepared.flagged)} patches without measurable stains, kept as they are")
    return prepared


def _describe_classes(sources: Sequence[PreparedFold], reporter: Reporter) -> tuple[str, ...]:
    """Say how much of each class there is to learn from; returns the nucleus classes there is nothing of."""
    pixels = sum(
        np.bincount(np.asarray(patch).ravel(), minlength=UNKNOWN + 1) for fold in sources for patch in fold.targets
    )
    shares = np.asarray(pixels) / np.sum(pixels)
    seen = [f"{c.name} {shares[c.channel]:.1%}" for c in CLASSES if shares[c.channel] > 0]
    unknown = [f"nuclei of unknown class {shares[UNKNOWN]:.1%}"] if shares[UNKNOWN] > 0 else []
    reporter.say("training pixels: " + ", ".join([*seen, *unknown]))
    untaught = tuple(c.name for c in CLASSES if shares[c.channel] == 0)
    if untaught:
        reporter.warn(f"these data show no {' and no '.join(untaught)}: the network will not find them")
    return untaught


def _info(settings: TrainSettings, untaught: tuple[str, ...]) -> ModelInfo:
    return ModelInfo(
        name=settings.name,
        encoder=settings.encoder,
        width=settings.width,
        train_size=settings.recipe.size,
        stain="none" if settings.stain == "none" else "macenko",
        untaught=untaught,
    )


def _show(settings: TrainSettings, data: _Data, world: World, precision: torch.dtype) -> None:
    model, info = load_weights(settings.out / WEIGHTS)
    sources = data.test or data.valid or data.train
    part = "test" if data.test else "validation" if data.valid else "training"
    write_page(settings.out / "results.html", model.to(world.device), info, sources, part, world.device, precision)


def _augmentation(name: str, size: int) -> Augmentation:
    return wide_augmentation(size) if name == "wide" else paper_augmentation(size)


def _encoder_weights(text: str) -> Literal["none", "timm"] | Path:
    return "none" if text == "none" else "timm" if text == "timm" else Path(text)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise MissingCapabilityError(
            "--device cuda: PyTorch sees no GPU (`unetsharp doctor` says why); use --device cpu"
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _precision(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def _workers(asked: int | None, device: torch.device) -> int:
    """On the CPU reading is a small share of the work and its cores are busy; a GPU waits for nothing else."""
    if asked is not None:
        return asked
    return min(8, usable_cores()) if device.type == "cuda" else 0


def _require_room_for_run(out: Path, resume: bool) -> None:
    if not resume and (out / CHECKPOINT).exists():
        raise InputError(f"{out} holds a run already; go on with it by --resume, or name another folder by --out")


@contextmanager
def _repeatable(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the initial weights, and on the CPU let nothing run whose result varies. GPUs get their fastest instead."""
    torch.manual_seed(seed)
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(device.type == "cpu")
    torch.backends.cudnn.benchmark = device.type == "cuda"
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
