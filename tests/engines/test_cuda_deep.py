"""The deep convolutions' kernels against their reference, emulated everywhere and on a GPU where there is one."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from support.cuda_emulator import emulated_deep_kernels
from support.cuda_machine import Machine, machine_called
from unetsharp_engines.cuda import reference
from unetsharp_engines.cuda.deep import DEEP_KERNELS, DeepKernel, DeepKernels

BY_NAME = {kernel.name: kernel for kernel in DEEP_KERNELS}
SIDES = [(1, 1), (1, 3), (3, 2), (2, 5), (4, 7), (5, 16), (9, 4)]
ULP = {True: 2.0**-10, False: 2.0**-18}
"""By float16 or not: what rounding, and in float32 the fast exponential of sums of 36 terms, may change, relatively."""


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with machine_called(request.param, monkeypatch) as found:
        yield found


@pytest.fixture(params=BY_NAME)
def kernel(request: pytest.FixtureRequest) -> DeepKernel:
    return BY_NAME[request.param]


def ran(
    machine: Machine, kernels: DeepKernels, kernel: DeepKernel, taps: npt.NDArray[Any], scale: Any, shift: Any
) -> npt.NDArray[Any]:
    """The kernel's output, [N, C, H, W] whatever its layout."""
    n, channels, h, w = taps.shape
    shape = (n, channels // 9, h * kernel.factor, w * kernel.factor)
    if kernel.channels_last:
        taps, shape = taps.transpose(0, 2, 3, 1), (n, *shape[2:], shape[1])
    out = machine.empty(int(np.prod(shape)) * taps.itemsize)
    kernels.run(
        kernel,
        *(machine.holding(a) for a in (taps, np.float32(scale), np.float32(shift))),
        out,
        n=n,
        channels=channels // 9,
        height=h,
        width=w,
        stream=machine.stream,
    )
    found = machine.fetch(out, shape, taps.dtype)
    return found.transpose(0, 3, 1, 2) if kernel.channels_last else found


def of(kernel: DeepKernel, values: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    return values.astype(np.float16 if kernel.half else np.float32)


def channels_of(kernel: DeepKernel) -> int:
    return 16 if kernel.channels_last else 5


@pytest.mark.parametrize("sides", SIDES)
def test_equals_the_reference(machine: Machine, kernel: DeepKernel, sides: tuple[int, int]) -> None:
    channels, rng = channels_of(kernel), np.random.default_rng(sides)
    taps = of(kernel, rng.normal(scale=2, size=(3, 9 * channels, *sides)))
    scale, shift = rng.uniform(-1.5, 1.5, (2, channels)).astype(np.float32)
    wanted = reference.deep(taps, scale, shift, kernel.factor)
    found = ran(machine, machine.deep_kernels(), kernel, taps, scale, shift)
    assert found.dtype == taps.dtype
    assert np.isfinite(found).all()
    error = np.abs(found - wanted) / np.maximum(1.0, np.abs(wanted))
    assert error.max() <= ULP[kernel.half]


def test_centre_taps_of_a_constant_stay_one(machine: Machine, kernel: DeepKernel) -> None:
    """The centre tap alone is the upsampled map: of ones, Mish(1) everywhere, borders included."""
    channels = channels_of(kernel)
    taps = np.zeros((1, 9, channels, 3, 5))
    taps[:, 4] = 1.0
    found = ran(
        machine, machine.deep_kernels(), kernel, of(kernel, taps.reshape(1, -1, 3, 5)), [1] * channels, [0] * channels
    )
    np.testing.assert_allclose(found, np.tanh(np.log1p(np.e)), rtol=2 * ULP[kernel.half])


def test_shifted_taps_leave_a_border_of_zeros(machine: Machine, kernel: DeepKernel) -> None:
    """Tap 3·column + row of ones, row and column 0, reaches every pixel but the first row and column."""
    channels = channels_of(kernel)
    taps = np.zeros((1, 9, channels, 2, 3))
    taps[:, 0] = 1.0
    found = ran(
        machine, machine.deep_kernels(), kernel, of(kernel, taps.reshape(1, -1, 2, 3)), [1] * channels, [0] * channels
    )
    assert (found[:, :, 0] == 0).all()
    assert (found[:, :, :, 0] == 0).all()
    np.testing.assert_allclose(found[:, :, 1:, 1:], np.tanh(np.log1p(np.e)), rtol=2 * ULP[kernel.half])


def test_mish_overflows_nowhere(machine: Machine, kernel: DeepKernel) -> None:
    """From the largest float16 to the smallest: x where x is large, 0 where it is far below, and the shift on top."""
    channels = channels_of(kernel)
    values = np.array([65504.0, 100.0, 21.0, -21.0, -100.0, -65504.0])
    taps = np.zeros((1, 9, channels, 1, len(values) * 3))
    taps[:, 4] = np.repeat(values, 3)
    given = of(kernel, taps.reshape(1, 9 * channels, 1, -1))
    found = ran(machine, machine.deep_kernels(), kernel, given, [0.5] * channels, [2.0] * channels)
    middle = found[0, 0, 0, kernel.factor * 3 // 2 :: 3 * kernel.factor].astype(np.float64)  # of three equal pixels
    np.testing.assert_allclose(middle, 0.5 * values * (values > 0) + 2.0, rtol=2 * ULP[kernel.half], atol=1e-6)


def test_the_order_of_threads_does_not_matter(kernel: DeepKernel) -> None:
    machine = Machine(None)  # type: ignore[arg-type]  # no kernel but the deep ones
    channels = channels_of(kernel)
    taps = of(kernel, np.random.default_rng(0).normal(size=(2, 9 * channels, 6, 7)))
    one, other = (
        ran(machine, emulated_deep_kernels(backwards=b), kernel, taps, [1] * channels, [0] * channels)
        for b in (False, True)
    )
    np.testing.assert_array_equal(one, other)


def test_channels_last_refuses_what_its_format_would_fill_up() -> None:
    kernel = BY_NAME["deep_channels_last_half_2"]
    assert [kernel.takes_channels_last(channels) for channels in (8, 12, 64)] == [True, False, True]
    with pytest.raises(ValueError, match="12 channels; deep_channels_last_half_2 takes a multiple of 8"):
        emulated_deep_kernels().run(kernel, 0, 0, 0, 0, n=1, channels=12, height=1, width=1, stream=None)
