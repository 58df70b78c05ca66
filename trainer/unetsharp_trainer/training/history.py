"""What a run leaves to watch: history.csv, curves.png and TensorBoard scalars, brought up to date as it goes."""

import csv
import math
from pathlib import Path
from typing import Any

from unetsharp_engines.contract import CLASSES
from unetsharp_engines.files import replacing
from unetsharp_trainer.metrics.confusion import ConfusionMatrix

__all__ = ["History", "row_of"]

Row = dict[str, float]

_DICE = tuple(f"dice_{c.name.lower()}" for c in CLASSES)


def row_of(
    *,
    epoch: int,
    rate: float,
    loss: float,
    valid_loss: float,
    matrix: ConfusionMatrix | None,
    images_per_second: float,
    seconds: float,
    memory_mb: float,
) -> Row:
    """One epoch's row; Dice values are of the validation folds, NaN without them or for classes they do not show."""
    dice = [math.nan] * len(CLASSES) if matrix is None else matrix.dice().tolist()
    return {
        "epoch": epoch,
        "learning_rate": rate,
        "loss": loss,
        "valid_loss": valid_loss,
        "dice_pooled": math.nan if matrix is None else matrix.pooled_dice(),
        "dice_class_mean": math.nan if matrix is None else matrix.class_mean_dice(),
        "dice_foreground": math.nan if matrix is None else matrix.foreground_dice(),
        **dict(zip(_DICE, dice, strict=True)),
        "images_per_second": images_per_second,
        "seconds": seconds,
        "memory_mb": memory_mb,
    }


class History:
    """The files in ``folder`` that show how a run goes; each is written whole from the rows, so they agree."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None
        self._logged = 0

    def close(self) -> None:
        """Let go of TensorBoard's log."""
        if self._writer is not None:
            self._writer.close()

    def write(self, rows: list[Row]) -> None:
        """Bring every file up to date with ``rows``."""
        self._write_csv(rows)
        self._write_curves(rows)
        self._log(rows)

    def line(self, rows: list[Row], of_epochs: str, left: float) -> str:
        """The last epoch in one line; ``of_epochs`` says how many there will be, ``left`` is what is to come, s."""
        row = rows[-1]
        dice = [f"{c.name} {row[key]:.3f}" for c, key in zip(CLASSES, _DICE, strict=True) if not math.isnan(row[key])]
        scores = [f"foreground {row['dice_foreground']:.3f}", *dice] if not math.isnan(row["valid_loss"]) else []
        return " | ".join(
            [
                f"epoch {len(rows)}{of_epochs}: loss {row['loss']:.4f}",
                *([f"valid {row['valid_loss']:.4f}, Dice {', '.join(scores)}"] if scores else []),
                f"{row['images_per_second']:.1f} images/s",
                f"{row['memory_mb'] / 1024:.1f} GB",
                f"{left / 60:.0f} min left" if left >= 60 else f"{left:.0f} s left",
            ]
        )

    def _write_csv(self, rows: list[Row]) -> None:
        with replacing(self.folder / "history.csv") as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows({name: "" if math.isnan(value) else value for name, value in row.items()} for row in rows)

    def _write_curves(self, rows: list[Row]) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 4), layout="constrained")
        FigureCanvasAgg(figure)
        losses, scores = figure.subplots(1, 2)
        epochs = [row["epoch"] for row in rows]
        for name, label in (("loss", "training"), ("valid_loss", "validation")):
            losses.plot(epochs, [row[name] for row in rows], marker=".", label=label)
        losses.set(xlabel="epoch", ylabel="loss")
        scores.plot(epochs, [row["dice_foreground"] for row in rows], color="black", label="foreground", linewidth=2)
        for tissue_class, key in zip(CLASSES, _DICE, strict=True):
            if any(not math.isnan(row[key]) for row in rows):
                color = "grey" if tissue_class.name == "Background" else tuple(v / 255 for v in tissue_class.color)
                scores.plot(epochs, [row[key] for row in rows], color=color, label=tissue_class.name)
        scores.set(xlabel="epoch", ylabel="validation Dice", ylim=(0, 1))
        for axes in (losses, scores):
            axes.legend(fontsize="small")
        with replacing(self.folder / "curves.png") as temporary:
            figure.savefig(temporary, dpi=110)

    def _log(self, rows: list[Row]) -> None:
        if self._writer is None:
            self._writer = _tensorboard_writer(self.folder / "tensorboard")
        if self._writer is None:
            return
        for row in rows[self._logged :]:
            for name, value in row.items():
                if name != "epoch" and not math.isnan(value):
                    self._writer.add_scalar(name, value, int(row["epoch"]))
        self._writer.flush()
        self._logged = len(rows)


def _tensorboard_writer(folder: Path) -> Any:
    """A writer that replaces what an earlier, interrupted run logged; None without TensorBoard, a convenience: the same
    numbers are in history.csv.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        return None
    return SummaryWriter(str(folder), purge_step=1)
