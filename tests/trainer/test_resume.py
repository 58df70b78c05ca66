"""A run killed with kill -9 goes on as if nothing had happened; a checkpoint is whole, harmless, and of this run."""

import csv
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch", reason="training is the train extra")
for package in ("timm", "adabound", "albumentations", "filelock", "matplotlib"):
    pytest.importorskip(package, reason="part of the train extra")

from support.teachable import TINY, write_teachable  # noqa: E402
from unetsharp.cli.app import app  # noqa: E402
from unetsharp_engines.errors import InputError  # noqa: E402
from unetsharp_engines.files import sha256_of  # noqa: E402
from unetsharp_trainer.training.checkpoint import Progress, load_checkpoint, save_checkpoint  # noqa: E402

OPTIONS = ["--epochs", "3", "--batch", "2", "--accumulate", "2", "--frozen-epochs", "1", "--checkpoint-minutes", "0"]
TIMINGS = {"images_per_second", "seconds", "memory_mb"}


def command(data: Path, out: Path) -> list[str]:
    return ["train", "--data", str(data), "--out", str(out), *TINY, *OPTIONS]


def curve(out: Path) -> list[dict[str, str]]:
    with (out / "history.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name not in TIMINGS} for row in csv.DictReader(file)]


@pytest.fixture
def one_thread() -> "object":
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def kill_within_an_epoch(arguments: list[str], out: Path) -> None:
    """Start the command and kill -9 it as soon as a checkpoint from within the second or a later epoch lies there."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "unetsharp", *arguments], env=environment, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and process.poll() is None:
            if (out / "checkpoint.pt").exists():
                progress = torch.load(out / "checkpoint.pt", weights_only=True)["progress"]
                if progress["epoch"] >= 1 and progress["step"] >= 1:
                    break
            time.sleep(0.01)
        assert process.poll() is None, process.communicate()[1].decode()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


@pytest.mark.usefixtures("one_thread")
def test_killed_run_ends_as_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    data = write_teachable(tmp_path / "data", patches=(12, 2, 1))  # three steps an epoch
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = CliRunner().invoke(app, command(data, whole))
    assert result.exit_code == 0, result.stderr

    kill_within_an_epoch(command(data, killed), killed)
    assert 1 <= len(curve(killed)) < 3
    resumed = CliRunner().invoke(app, [*command(data, killed), "--resume"])
    assert resumed.exit_code == 0, resumed.stderr
    assert "going on in epoch" in resumed.stderr

    assert len(curve(whole)) == 3
    assert curve(killed) == curve(whole)
    assert sha256_of(killed / "weights.safetensors") == sha256_of(whole / "weights.safetensors")


def checkpoint(path: Path, **fingerprint: object) -> tuple["torch.nn.Module", "torch.optim.Optimizer"]:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    save_checkpoint(
        path, model, optimizer, Progress(epoch=4, step=2, loss_sum=0.1), {"recipe": {"size": 64}, **fingerprint}
    )
    return model, optimizer


def test_checkpoint_brings_back_tensors_optimizer_randomness_and_place(tmp_path: Path) -> None:
    model, optimizer = checkpoint(tmp_path / "c.pt")
    expected = torch.rand(3)
    other = torch.nn.Linear(2, 1)
    other_optimizer = torch.optim.AdamW(other.parameters())
    progress = load_checkpoint(tmp_path / "c.pt", other, other_optimizer, {"recipe": {"size": 64}})
    assert torch.equal(torch.rand(3), expected)
    assert (progress.epoch, progress.step, progress.loss_sum) == (4, 2, 0.1)
    assert torch.equal(other.weight, model.weight)
    state, restored = (o.state_dict()["state"][0]["exp_avg"] for o in (optimizer, other_optimizer))
    assert torch.equal(state, restored)


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    model, optimizer = checkpoint(tmp_path / "c.pt", seed=1)
    with pytest.raises(InputError, match="begun with seed 1, now it is 2"):
        load_checkpoint(tmp_path / "c.pt", model, optimizer, {"recipe": {"size": 64}, "seed": 2})
    with pytest.raises(InputError, match="begun with size 64, now it is 96"):
        load_checkpoint(tmp_path / "c.pt", model, optimizer, {"recipe": {"size": 96}, "seed": 1})


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps({"version": 1}, protocol=2)])
def test_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.pt"
    path.write_bytes(content)
    model = torch.nn.Linear(2, 1)
    with pytest.raises(InputError, match=r"c\.pt"):
        load_checkpoint(path, model, torch.optim.AdamW(model.parameters()), {"recipe": {}})


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_checkpoint_cannot_execute_code(tmp_path: Path) -> None:
    torch.save({"version": 1, "progress": Bomb(tmp_path / "boom")}, tmp_path / "c.pt")
    model = torch.nn.Linear(2, 1)
    with pytest.raises(InputError):
        load_checkpoint(tmp_path / "c.pt", model, torch.optim.AdamW(model.parameters()), {"recipe": {}})
    assert not (tmp_path / "boom").exists()
