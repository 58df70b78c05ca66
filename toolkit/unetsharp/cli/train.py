"""``unetsharp train``."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unetsharp.cli.output import Output, Verbosity

if TYPE_CHECKING:
    from unetsharp_trainer.training.settings import TrainSettings

__all__ = ["train"]


def train(
    data: Annotated[Path, typer.Option(help="Folder with PanNuke's folds, as released.")],
    out: Annotated[Path, typer.Option(help="Folder for weights, history, curves, logs.")],
    recipe: Annotated[
        str, typer.Option(help="[b]paper[/b], or [b]scratch[/b]: what measured best from random weights.")
    ] = "paper",
    encoder: Annotated[str, typer.Option(help="timm backbone with strides 2 to 32.")] = "resnext101_32x4d",
    width: Annotated[int, typer.Option(help="Decoder branch width c.")] = 64,
    encoder_weights: Annotated[
        str, typer.Option(help="[b]timm[/b] (downloads), [b]none[/b] (random), or a file.")
    ] = "timm",
    folds: Annotated[str, typer.Option(help="TRAIN,VALID,TEST; 1+2,-,3 joins folds, - is none.")] = "1,2,3",
    stain: Annotated[str, typer.Option(help="Macenko by [b]tile[/b], or [b]none[/b].")] = "tile",
    epochs: Annotated[int | None, typer.Option(help="Paper: 50.", show_default="recipe's")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Train for so long instead, however many epochs it makes.", show_default=False)
    ] = None,
    frozen_epochs: Annotated[
        int | None, typer.Option(help="First epochs with the encoder frozen. Paper: 5.", show_default="recipe's")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Side of the training windows, px. Paper: 224.", show_default="recipe's")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Windows in a forward pass, of each process.", show_default="recipe's")
    ] = None,
    accumulate: Annotated[int | None, typer.Option(help="Forward passes to one step.", show_default="recipe's")] = None,
    pooling: Annotated[
        bool | None,
        typer.Option(help="The ASPP's average over the whole window.", show_default="recipe's"),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="[b]paper[/b]: Focal Tversky summed over classes; [b]author[/b]: one pooled term; [b]ce-dice[/b].",
            show_default="recipe's",
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(help="[b]adabound[/b] (paper), or [b]adamw[/b] with one cycle.", show_default="recipe's"),
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate. Paper: 1e-4.", show_default="recipe's")] = None,
    augmentation: Annotated[
        str | None,
        typer.Option(help="[b]paper[/b], or [b]wide[/b]: other scanners.", show_default="recipe's"),
    ] = None,
    foreground_weight: Annotated[
        float, typer.Option(help="Weight of nucleus against background; teaches from nuclei of unknown class.")
    ] = 0.0,
    patience: Annotated[int, typer.Option(help="Stop after so many epochs without a better one; 0 never.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    checkpoint_minutes: Annotated[float, typer.Option(help="Time between checkpoints within an epoch.")] = 5.0,
    precision: Annotated[
        str, typer.Option(help="[b]auto[/b] (bfloat16 on GPUs that have it), float32, bfloat16.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    workers: Annotated[
        int | None, typer.Option(help="Processes that read and augment.", show_default="0 on a CPU, to 8 with a GPU")
    ] = None,
    compile_: Annotated[bool, typer.Option("--compile", help="Compile the network with torch.compile.")] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for prepared patches.", show_default="inside --data")
    ] = None,
    name: Annotated[str, typer.Option(help="What the weights are called.")] = "unetsharp",
    seed: Annotated[int, typer.Option(help="Seed; on the CPU it fixes every number.")] = 0,
    *,
    output: Output,
) -> None:
    """Train U-Net# on PanNuke. Without options but --data and --out: as the paper did.

    Writes weights.safetensors (best epoch by validation Dice, last without validation), history.csv, curves.png,
    TensorBoard logs, results.html with image, truth and prediction, and checkpoint.pt to go on from. Several GPUs:
    start it with [b]torchrun --nproc-per-node N -m unetsharp train …[/b].

    \b
    Example: unetsharp train --data PanNuke --out runs/paper
    From random weights: unetsharp train --data PanNuke --out runs/edge --recipe scratch --encoder-weights none
    """
    from unetsharp_engines.errors import InputError, MissingCapabilityError

    if epochs is not None and minutes is not None:
        raise InputError(f"--epochs {epochs} and --minutes {minutes:g} both say when to end; give one of them")
    try:
        from unetsharp_trainer.training.run import train as run
        from unetsharp_trainer.training.settings import TrainSettings, recipe_for
    except ModuleNotFoundError as error:
        raise MissingCapabilityError(
            f"training needs {error.name}, which is not installed here: pip install 'unetsharp[train]'"
        ) from error

    settings = TrainSettings(
        recipe=recipe_for(
            recipe, encoder_weights, epochs=epochs, frozen_epochs=frozen_epochs, size=size, batch=batch,
            accumulate=accumulate, loss=loss, optimizer=optimizer, learning_rate=lr, augmentation=augmentation,
            pooling=pooling,
        ),
        data=data, out=out, encoder=encoder, width=width, encoder_weights=encoder_weights, folds=folds, stain=stain,
        minutes=minutes, foreground_weight=foreground_weight, patience=patience, checkpoint_minutes=checkpoint_minutes,
        precision=precision, device=device, workers=workers, compile=compile_, cache=cache, name=name, seed=seed,
    )  # fmt: skip
    leads = os.environ.get("RANK", "0") == "0"
    reporter = output if leads else Output(verbosity=Verbosity.QUIET)
    reporter.say(_plan(settings, frozen_epochs))
    result = run(settings, reporter, resume=resume)
    if leads:
        output.result(
            asdict(result),
            f"{result.weights}: epoch {result.best_epoch} of {result.epochs}, {result.seconds / 60:.1f} min\n"
            f"pictures: {out / 'results.html'}   curves: {out / 'curves.png'}\n"
            f"next: unetsharp evaluate {result.weights} --data {data} --fold {folds.split(',')[2]}",
        )


train.resume_hint = "go on with the same command and --resume"  # type: ignore[attr-defined]


def _plan(settings: "TrainSettings", asked_frozen_epochs: int | None) -> str:
    recipe = settings.recipe
    frozen = f"the first {recipe.frozen_epochs} with the encoder frozen"
    if not recipe.frozen_epochs:
        random = settings.encoder_weights == "none" and asked_frozen_epochs is None
        frozen = "none frozen" + (", since the encoder is random" if random else "")
    length = f"{recipe.epochs} epochs" if settings.minutes is None else f"{settings.minutes:g} minutes"
    return (
        f"{settings.encoder} of width {settings.width}, encoder weights {settings.encoder_weights}: "
        f"{length} ({frozen}), {recipe.size} px windows, batch {recipe.batch} × {recipe.accumulate}, "
        f"{recipe.loss} loss, {recipe.optimizer} at {recipe.learning_rate:g}, {recipe.augmentation} augmentation"
    )
