"""The chain in PyTorch alone: its Macenko is the reference's, and its labels are the reference network's."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from support.real_tiles import dsb_tiles
from support.runtime_tester import AS_SCANNED
from unetsharp_engines.errors import MissingCapabilityError
from unetsharp_engines.stain import StainPlan, StainStatus, StainTransform, estimate

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'unetsharp[export]'")

EDGE = Path(str(files("unetsharp") / "assets" / "edge.safetensors"))
FALLBACK = StainTransform(0.9 * np.eye(3), np.full(3, -0.3))
"""Not the tester's half of every level: whole levels in float64 that float32 truncates to the level below."""
FIXED = StainPlan(FALLBACK)
PER_TILE = StainPlan(FALLBACK, per_tile=True)


def hostile_tiles() -> npt.NDArray[np.uint8]:
    """Real tiles, then: white, one colour, black, two colours, a little tissue on glass."""
    real = dsb_tiles()
    plain = [np.full_like(real[0], level) for level in (255, 120, 0)]
    halves = np.full_like(real[0], 60)
    halves[:96] = (200, 120, 160)
    sparse = np.full_like(real[0], 245)
    sparse[:19, :19] = real[0][:19, :19]
    return np.stack([*real, *plain, halves, sparse])


def test_macenko_is_the_references() -> None:
    from unetsharp.bench import torch_macenko

    tiles = hostile_tiles()
    given = torch.from_numpy(tiles)
    fallback = (torch.from_numpy(array.copy()) for array in (FALLBACK.matrix, FALLBACK.offset))
    matrix, offset, found = torch_macenko.estimate(given, *fallback)
    assert found.tolist() == [estimate(tile).status is StainStatus.OK for tile in tiles]
    levels = (torch_macenko.apply(given, matrix, offset) * 255).round().numpy().transpose(0, 2, 3, 1)
    difference = np.abs(levels - PER_TILE.apply(tiles))
    assert difference.max() <= 1  # float32: a level may be truncated to its neighbour
    assert difference.mean() < 1e-3


@pytest.mark.parametrize("plan", [AS_SCANNED, FIXED, PER_TILE], ids=["as scanned", "fixed", "per tile"])
@pytest.mark.parametrize("count", [1, 5])
def test_labels_are_the_networks(plan: StainPlan, count: int) -> None:
    from unetsharp.bench.torch_chain import TorchChain
    from unetsharp.export.torch_runtime import TorchRuntime

    tiles = dsb_tiles()[:count, :64, :64]
    with TorchRuntime(EDGE, device="cpu") as reference, TorchChain(EDGE, batch=2, device="cpu") as chain:
        agreement = chain.labels(tiles, plan) == reference.labels(tiles, plan)
        assert agreement.mean() > 0.995
        expected = reference.logits(tiles, plan)
        assert np.abs(chain.logits(tiles, plan) - expected).mean() < 1e-2 * np.ptp(expected)


def test_without_a_gpu_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from unetsharp.bench.torch_chain import TorchChain

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingCapabilityError, match="sees no GPU"):
        TorchChain(EDGE, device="cuda")
