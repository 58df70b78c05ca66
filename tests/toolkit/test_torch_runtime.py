"""PyTorch as a runtime keeps the runtimes' promises, and says what it lacks."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from support.networks import random_network
from support.runtime_tester import AS_SCANNED, DARKER, RuntimeTester, tiles
from unetsharp.export.torch_runtime import TorchRuntime
from unetsharp.runtimes import open_runtime
from unetsharp_engines.errors import InputError, MissingCapabilityError
from unetsharp_engines.model_info import ModelInfo
from unetsharp_trainer.network import save_weights

INFO = ModelInfo(name="random", encoder="resnet18", width=4, train_size=256)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_weights(path, random_network("resnet18", 4), INFO)
    return path


class TestTorchRuntime(RuntimeTester):
    @pytest.fixture(autouse=True)
    def _weights(self, weights: Path) -> None:
        self.weights = weights

    def make_runtime(self) -> TorchRuntime:
        return TorchRuntime(self.weights, device="cpu")


def test_feeds_the_network_normalized_rgb_from_0_to_1(weights: Path) -> None:
    with TorchRuntime(weights, device="cpu") as runtime:
        image = torch.from_numpy(DARKER.apply(tiles(2))).permute(0, 3, 1, 2) / 255
        with torch.no_grad():
            expected = runtime.network(image).numpy()
        np.testing.assert_allclose(runtime.logits(tiles(2), DARKER), expected, rtol=0, atol=1e-4)


def test_weights_open_on_torch(weights: Path) -> None:
    with open_runtime(weights) as runtime:
        assert isinstance(runtime, TorchRuntime)
        assert runtime.info.name == "random"
        assert len(runtime.info.weights_sha256) == 64
        assert runtime.version == torch.__version__


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        TorchRuntime(tmp_path / "absent.safetensors")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_not_replaced_by_the_cpu(weights: Path) -> None:
    with pytest.raises(MissingCapabilityError, match="PyTorch sees no GPU"):
        TorchRuntime(weights, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that PyTorch sees")
def test_gpu_and_cpu_agree(weights: Path) -> None:
    with TorchRuntime(weights, device="cpu") as cpu, TorchRuntime(weights, device="cuda") as gpu:
        expected, seen = cpu.logits(tiles(2), AS_SCANNED), gpu.logits(tiles(2), AS_SCANNED)
    assert np.abs(seen - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("missing", ["torch", "timm"])
def test_a_missing_package_is_named_with_its_cure(missing: str, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from pathlib import Path; from unetsharp.export.torch_runtime import TorchRuntime\n"
        "TorchRuntime(Path('weights.safetensors'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("unetsharp_engines.errors.MissingCapabilityError: weights.safetensors: ")
    assert f"{missing} is missing: pip install 'unetsharp[export]'" in last
