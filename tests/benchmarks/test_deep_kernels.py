"""The deep kernels' measurements, on the emulator: they run, and compare what is to be compared."""

from typing import Any

import numpy as np
import pytest
import torch

import deep_kernels
from support.cuda_emulator import emulated_deep_kernels
from support.cuda_machine import Machine
from unetsharp_engines.cuda import reference
from unetsharp_engines.cuda.deep import DEEP_KERNELS


class EmulatedGpu(Machine):
    """Every launch takes a microsecond."""

    def __init__(self) -> None:
        self.cuda = self
        self.copied = 0
        super().__init__(None)  # type: ignore[arg-type]

    def memcpy_dtod_async(self, to: int, source: int, size: int, stream: Any) -> None:
        self.copied = size

    def microseconds(self, launch: Any) -> float:
        launch(0)
        return 1.0

    def free(self) -> None:
        self._held.clear()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> EmulatedGpu:
    monkeypatch.setattr(deep_kernels, "deep_kernels", lambda _: emulated_deep_kernels())
    monkeypatch.setattr(deep_kernels, "CHANNELS", 8)
    monkeypatch.setattr(deep_kernels, "PLACES", ((2, 3), (8, 2)))
    return EmulatedGpu()


def test_every_kernel_is_compared(gpu: EmulatedGpu) -> None:
    found = deep_kernels.deep_equivalence(gpu, height=3, width=4, n=2)
    assert list(found) == [kernel.name for kernel in DEEP_KERNELS]
    assert all(0 < error <= (2.0**-10 if "half" in name else 2.0**-18) for name, error in found.items())


def test_bytes_are_those_of_taps_and_outputs(gpu: EmulatedGpu) -> None:
    times = deep_kernels.deep_times(gpu, 2)
    moved = 2 * 8 * 2 * (9 * (9 + 4) + 4 * (9 + 64))
    assert gpu.copied == moved // 2
    assert {row["gigabytes_per_second"] for row in times.values()} == {moved / 1e3}
    assert {"planes", "channels_last", "copy_of_as_many_bytes"} <= set(times)


def test_stock_operators_do_the_same() -> None:
    rng = np.random.default_rng(0)
    taps, (scale, shift) = rng.normal(size=(2, 9, 4, 5, 5)), rng.normal(size=(2, 4))
    by_class = torch.from_numpy(taps.swapaxes(1, 2).reshape(2, 36, 5, 5).copy())
    found = deep_kernels.stock_form(by_class, torch.from_numpy(scale), torch.from_numpy(shift), 4).numpy()
    wanted = reference.deep(taps.reshape(2, 36, 5, 5), scale, shift, 4)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
