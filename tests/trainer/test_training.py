"""Training runs: what they write, what they freeze, what they accumulate, when they stop, what they refuse."""

import csv
import json
import math
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch", reason="training is the train extra")
for package in ("timm", "adabound", "albumentations", "filelock", "matplotlib"):
    pytest.importorskip(package, reason="part of the train extra")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402

from support.teachable import ENCODER, TINY, teachable, write_teachable  # noqa: E402
from unetsharp.cli.app import app  # noqa: E402
from unetsharp_engines.errors import InputError  # noqa: E402
from unetsharp_trainer.data.augment import paper_augmentation  # noqa: E402
from unetsharp_trainer.network import UNetSharp, load_weights  # noqa: E402
from unetsharp_trainer.network.unetsharp import SILENT  # noqa: E402
from unetsharp_trainer.training.distributed import World  # noqa: E402
from unetsharp_trainer.training.loop import accumulate, begin_phase  # noqa: E402
from unetsharp_trainer.training.losses import SegmentationLoss  # noqa: E402
from unetsharp_trainer.training.pictures import colored  # noqa: E402
from unetsharp_trainer.training.sampling import EpochSampler, TrainingWindows, to_input  # noqa: E402
from unetsharp_trainer.training.settings import PAPER, SCRATCH, Recipe, TrainSettings, recipe_for  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teachable(tmp_path_factory.mktemp("data"), unknown=True)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object], str]:
    """One run from random weights, its JSON and what it said."""
    out = tmp_path_factory.mktemp("runs") / "a"
    options = ["--recipe", "scratch", "--epochs", "8", "--batch", "2", "--lr", "0.01", "--foreground-weight", "1"]
    result = CliRunner().invoke(app, ["train", "--data", str(data), "--out", str(out), *TINY, *options, "--json"])
    assert result.exit_code == 0, result.stderr
    return out, json.loads(result.stdout), result.stderr


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_run_leaves_all_it_promises(run: tuple[Path, dict[str, object], str]) -> None:
    out, report, _ = run
    assert [row["epoch"] for row in rows(out)] == [str(epoch) for epoch in range(1, 9)]
    assert report["epochs"] == 8
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((out / "tensorboard").glob("events*"))
    page = (out / "results.html").read_text()
    assert page.count("<tr><td>") == 3  # the test fold has three patches
    assert page.count("data:image/png;base64,") == 9
    assert "http" not in page  # self-contained
    assert not list(out.glob(".*"))  # no temporary files


def test_run_learns(run: tuple[Path, dict[str, object], str]) -> None:
    losses = [float(row["loss"]) for row in rows(run[0])]
    assert losses[-1] < 0.7 * losses[0]
    assert float(rows(run[0])[-1]["valid_loss"]) < float(rows(run[0])[0]["valid_loss"])


def test_weights_are_the_best_epoch_and_know_what_they_were_never_taught(
    run: tuple[Path, dict[str, object], str],
) -> None:
    out, report, said = run
    model, info = load_weights(out / "weights.safetensors")
    assert info.untaught == ("Dead",)
    assert not model.head.weight[3].any()
    assert model.head.bias[3].item() == pytest.approx(SILENT, rel=1e-3)
    assert model.head.bias[[0, 1, 2, 4, 5]].abs().max() < 5
    assert model.aspp.pooled[1][2].weight.any()
    assert (info.encoder, info.width, info.train_size, info.stain) == (ENCODER, 4, 64, "none")
    assert "no Dead" in said
    assert "nuclei of unknown class" in said

    def score(row: dict[str, str]) -> float:
        return (float(row["dice_pooled"] or 0) + float(row["dice_foreground"] or 0)) / 2

    best = max(rows(out), key=score)
    assert report["best_epoch"] == int(best["epoch"])


def test_absent_class_has_an_empty_cell_not_a_zero(data: Path, tmp_path: Path) -> None:
    """Without validation folds no Dice is known, and the last epoch's weights are kept."""
    options = ["--folds", "1,-,-", "--epochs", "2", "--batch", "8", "--accumulate", "1", "--loss", "author"]
    result = CliRunner().invoke(
        app, ["train", "--data", str(data), "--out", str(tmp_path / "r"), *TINY, *options, "--json"]
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["best_epoch"] == 2
    assert all(row["dice_dead"] == row["dice_pooled"] == row["valid_loss"] == "" for row in rows(tmp_path / "r"))


def test_early_stopping(data: Path, tmp_path: Path) -> None:
    """At a rate of 1e-30 nothing gets better after the first epoch."""
    options = ["--epochs", "9", "--patience", "2", "--lr", "1e-30", "--batch", "4", "--recipe", "scratch"]
    result = CliRunner().invoke(app, ["train", "--data", str(data), "--out", str(tmp_path / "r"), *TINY, *options])
    assert result.exit_code == 0, result.stderr
    assert len(rows(tmp_path / "r")) < 9
    assert "no better validation Dice in the 2 epochs" in result.stderr


def test_run_by_time_ends_with_it_and_so_does_its_rate(data: Path, tmp_path: Path) -> None:
    options = ["--minutes", "0.06", "--batch", "4", "--recipe", "scratch", "--folds", "1,-,-", "--no-pooling"]
    result = CliRunner().invoke(app, ["train", "--data", str(data), "--out", str(tmp_path / "r"), *TINY, *options])
    assert result.exit_code == 0, result.stderr
    model, _ = load_weights(tmp_path / "r" / "weights.safetensors")
    assert not model.aspp.pooled[1][2].weight.any()
    seconds = [float(row["seconds"]) for row in rows(tmp_path / "r")]
    assert 3.6 <= sum(seconds) < 3.6 + 2 * max(seconds)
    rates = [float(row["learning_rate"]) for row in rows(tmp_path / "r")]
    assert rates[-1] < max(rates)


def test_phases_freeze_what_the_paper_freezes() -> None:
    model = UNetSharp(ENCODER, 4)
    norms = [m for m in model.encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def statistics_move() -> bool:
        before = norms[0].running_mean.clone()  # type: ignore[union-attr]
        model(image)
        return not torch.equal(before, norms[0].running_mean)  # type: ignore[arg-type]

    begin_phase(model, PAPER, epoch=PAPER.frozen_epochs - 1)
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert all(p.requires_grad for p in model.decoder.parameters())
    assert not statistics_move()

    begin_phase(model, PAPER, epoch=PAPER.frozen_epochs)
    frozen = {id(p) for norm in norms for p in norm.parameters()}
    assert all(p.requires_grad == (id(p) not in frozen) for p in model.encoder.parameters())
    assert statistics_move()

    begin_phase(model, SCRATCH, epoch=0)
    assert all(p.requires_grad for p in model.parameters())


def test_random_encoder_is_not_frozen_unless_asked() -> None:
    assert recipe_for("paper", "timm").frozen_epochs == 5
    assert recipe_for("paper", "none").frozen_epochs == 0
    assert recipe_for("paper", "none", frozen_epochs=2).frozen_epochs == 2


def test_defaults_are_the_papers() -> None:
    stated = {
        "loss": "paper",
        "optimizer": "adabound",
        "learning_rate": 1e-4,
        "epochs": 50,
        "frozen_epochs": 5,
        "size": 224,
    }
    assert stated.items() <= vars(PAPER).items()
    settings = TrainSettings(data=Path(), out=Path())
    assert (settings.encoder, settings.width, settings.folds, settings.stain) == (
        "resnext101_32x4d",
        64,
        "1,2,3",
        "tile",
    )
    assert settings.recipe == PAPER


def test_accumulated_gradient_equals_that_of_the_whole_batch() -> None:
    """4 windows against 2 × 2, on a network without BatchNorm and a loss that is a mean over pixels."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Mish(), nn.Conv2d(8, 6, 3, padding=1))
    images = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)
    targets = torch.randint(0, 6, (4, 16, 16), dtype=torch.uint8)

    class CrossEntropy(nn.Module):
        def forward(self, logits: "torch.Tensor", target: "torch.Tensor") -> "torch.Tensor":
            return nn.functional.cross_entropy(logits.double(), target.long())

    def gradient(passes: int) -> tuple["torch.Tensor", float]:
        network.zero_grad()
        batches = zip(images.chunk(passes), targets.chunk(passes), strict=True)
        total = accumulate(network, CrossEntropy(), batches, passes, torch.device("cpu"), torch.float32)
        return torch.cat([p.grad.flatten() for p in network.parameters()]), total.item() / passes  # type: ignore[union-attr]

    (once, loss_once), (twice, loss_twice) = gradient(1), gradient(2)
    torch.testing.assert_close(twice, once, rtol=1e-5, atol=1e-8)
    assert loss_twice == pytest.approx(loss_once, rel=1e-7)


class Arrays:
    def __init__(self, n: int, seed: int) -> None:
        arrays = teachable(n, seed)
        self.images = arrays["images"]
        self.targets = np.argmax(arrays["masks"] > 0, axis=-1).astype(np.uint8)


def test_window_depends_on_seed_epoch_and_patch_alone() -> None:
    def windows(seed: int) -> TrainingWindows:
        return TrainingWindows([Arrays(2, 0), Arrays(3, 1)], paper_augmentation(64), seed)

    one, other = windows(7), windows(7)
    assert len(one) == 5
    other[(3, 0)], other[(1, 4)]  # draws of its own in between
    for key in ((0, 0), (0, 4), (5, 2)):
        assert all(torch.equal(a, b) for a, b in zip(one[key], other[key], strict=True))
    assert not torch.equal(one[(0, 0)][0], one[(1, 0)][0])
    assert not torch.equal(one[(0, 0)][0], windows(8)[(0, 0)][0])


def test_loader_processes_do_not_change_a_pixel() -> None:
    from unetsharp_trainer.training.sampling import training_loader

    windows = TrainingWindows([Arrays(6, 0)], paper_augmentation(64), 0)
    sampler = EpochSampler(patches=6, batch=2, world=World(), seed=0, epochs=2)
    alone = list(training_loader(windows, sampler, workers=0, pin=False))
    shared = list(training_loader(windows, sampler, workers=2, pin=False))
    assert len(alone) == 6
    for a, b in zip(alone, shared, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


def sampler_of(patches: int, batch: int, world: World, epoch: int) -> EpochSampler:
    return EpochSampler(patches=patches, batch=batch, world=world, seed=5, epoch=epoch, epochs=epoch + 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.integers(0, 3))
def test_processes_share_an_epoch_without_overlap(patches: int, batch: int, size: int, epoch: int) -> None:
    """Step by step they see together what one process of their joint batch would see."""
    alone = sampler_of(patches, batch * size, World(), epoch)
    keys = [list(sampler_of(patches, batch, World(rank, size), epoch)) for rank in range(size)]
    assert all(len(own) == alone.batches * batch for own in keys)
    for number in range(alone.batches):
        together = {key for own in keys for key in own[number * batch : (number + 1) * batch]}
        assert together == set(list(alone)[number * batch * size : (number + 1) * batch * size])


@given(st.integers(0, 4))
def test_sampler_goes_on_where_it_stopped(start: int) -> None:
    whole = EpochSampler(patches=11, batch=2, world=World(), seed=1, epoch=2, epochs=5)
    rest = replace(whole, start=start)
    assert list(rest) == list(whole)[2 * start :]
    assert list(replace(whole, epoch=3)) == list(whole)[2 * whole.batches :]


def test_sampler_without_an_end_goes_on_epoch_by_epoch() -> None:
    endless = EpochSampler(patches=11, batch=2, world=World(), seed=1, epochs=None)
    ended = replace(endless, epochs=3)
    assert list(islice(endless, 30)) == list(ended)
    assert [sorted(key[0] for key in list(ended)[at : at + 10]) for at in (0, 10, 20)] == [[e] * 10 for e in range(3)]


def test_input_is_scaled_bytes_in_channels_last() -> None:
    images = torch.arange(2 * 4 * 5 * 3, dtype=torch.uint8).reshape(2, 4, 5, 3)
    image = to_input(images, torch.device("cpu"))
    assert image.shape == (2, 3, 4, 5)
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert image[1, 2, 3, 4].item() == pytest.approx(119 / 255)


def test_truth_is_drawn_in_class_colours() -> None:
    drawn = colored(np.array([[0, 4, 5, 255]], dtype=np.uint8))
    assert drawn.tolist() == [[[255, 0, 0], [255, 165, 0], [0, 0, 0], [160, 160, 160]]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--size", "100"], "multiple of 32"),
        (["--batch", "1"], "batch is 1"),
        (["--batch", "99"], "take --batch 8"),
        (["--lr", "0"], "must be above 0"),
        (["--recipe", "best"], "one of paper, scratch"),
        (["--loss", "focal"], "one of paper, author, ce-dice"),
        (["--folds", "1,2,7"], "no fold 7"),
        (["--minutes", "0"], "it must be above 0"),
        (["--minutes", "5", "--epochs", "3"], "give one of them"),
        (["--resume"], "no such checkpoint"),
        (["--encoder", "resnet5000"], "resnet5000"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(data: Path, tmp_path: Path, options: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["train", "--data", str(data), "--out", str(tmp_path / "r"), *TINY, *options])
    assert result.exit_code == 2
    assert result.stderr.strip().splitlines()[-1].startswith("error: ")
    assert words in result.stderr.replace("\n", " ")


def test_finished_run_is_not_written_over(run: tuple[Path, dict[str, object], str], data: Path) -> None:
    result = CliRunner().invoke(app, ["train", "--data", str(data), "--out", str(run[0]), *TINY])
    assert result.exit_code == 2
    assert "--resume" in result.stderr


def test_loss_that_blows_up_says_so(data: Path, tmp_path: Path) -> None:
    options = ["--recipe", "scratch", "--lr", "1e30", "--epochs", "2", "--batch", "4", "--foreground-weight", "1"]
    result = CliRunner().invoke(app, ["train", "--data", str(data), "--out", str(tmp_path / "r"), *TINY, *options])
    assert result.exit_code == 2
    assert "lower --lr" in result.stderr


def test_recipe_refuses_what_cannot_be() -> None:
    with pytest.raises(InputError, match="up to 384"):
        Recipe(size=416)
    with pytest.raises(InputError, match="epochs is 0"):
        Recipe(epochs=0)


def test_losses_of_the_recipes_exist() -> None:
    logits, target = torch.zeros(1, 6, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8)
    for recipe in (PAPER, SCRATCH):
        assert math.isfinite(SegmentationLoss(recipe.loss)(logits, target).item())
