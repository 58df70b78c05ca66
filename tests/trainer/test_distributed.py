"""Two processes under torchrun: their metrics are the single process's, to the pixel."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training is the train extra")
for package in ("timm", "adabound", "albumentations", "filelock", "matplotlib"):
    pytest.importorskip(package, reason="part of the train extra")

from support.teachable import TINY, write_teachable  # noqa: E402
from unetsharp_trainer.data.pannuke import open_folds  # noqa: E402
from unetsharp_trainer.data.prepared import prepare  # noqa: E402
from unetsharp_trainer.network import load_weights  # noqa: E402
from unetsharp_trainer.training.distributed import World  # noqa: E402
from unetsharp_trainer.training.losses import SegmentationLoss  # noqa: E402
from unetsharp_trainer.training.validation import validate  # noqa: E402

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    """One epoch on two processes; then its validation scores again, from its weights, in this process alone.

    19 patches make three batches: one process gets two, the other one.
    """
    data, out = write_teachable(tmp_path / "data", patches=(8, 19)), tmp_path / "out"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--recipe", "scratch", "--epochs", "1", "--batch", "2", "--folds", "1,2,-", "--lr", "0.01"]
    arguments = ["-m", "unetsharp", "train", "--data", str(data), "--out", str(out), *TINY, *options, "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun, *arguments], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("weights.safetensors") == 1  # only the first process speaks

    with (out / "history.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    model, _ = load_weights(out / "weights.safetensors")
    fold = prepare([open_folds(data)[2]], data / ".unetsharp-cache", stain="none")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    model = model.to(memory_format=torch.channels_last)
    matrix, loss = validate(model, fold, SegmentationLoss("ce-dice"), World(), torch.float32)
    torch.set_num_threads(before)
    assert float(row["dice_foreground"]) == matrix.foreground_dice()
    assert [float(row[f"dice_{name}"]) for name in ("neoplastic", "background")] == [matrix.dice()[0], matrix.dice()[5]]
    assert float(row["valid_loss"]) == pytest.approx(loss, rel=1e-9)
    assert matrix.counts.sum() == 19 * 256 * 256
