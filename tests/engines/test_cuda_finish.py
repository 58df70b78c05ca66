"""The finish kernels against `rewrites.finish`, emulated everywhere and on a GPU where there is one."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from support.cuda_emulator import emulated_kernels
from support.cuda_machine import Machine, machine_called
from unetsharp_engines.cuda import reference

N = 2


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with machine_called(request.param, monkeypatch) as found:
        yield found


def labelled(
    machine: Machine, given: npt.NDArray[Any], margin: int, *, confident: bool = True
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Labels and confidences from taps (more than 6 channels) or logits."""
    n, channels, height, width = given.shape
    factor = 2 if channels > 6 else 1
    shape = (n, factor * height - 2 * margin, factor * width - 2 * margin)
    size = int(np.prod(shape))
    labels, confidence = machine.empty(size), machine.empty(size)
    finish: Any = machine.kernels.finish if factor == 2 else machine.kernels.labels_of_logits
    finish(
        machine.holding(given),
        labels,
        **_shape(given),
        margin=margin,
        confidence=confidence if confident else None,
        stream=machine.stream,
    )
    return machine.fetch(labels, shape, np.uint8), machine.fetch(confidence, shape, np.uint8)


def shared(machine: Machine, given: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Probabilities from taps or logits."""
    n, channels, height, width = given.shape
    factor = 2 if channels > 6 else 1
    kernels = machine.kernels
    shape = (n, 6, factor * height, factor * width)
    out = machine.empty(int(np.prod(shape)) * 4)
    finish: Any = kernels.finish_probabilities if factor == 2 else kernels.probabilities_of_logits
    finish(machine.holding(given), out, **_shape(given), stream=machine.stream)
    return machine.fetch(out, shape, np.float32).astype(np.float64)


def _shape(given: npt.NDArray[Any]) -> dict[str, Any]:
    n, channels, height, width = given.shape
    shape = {"n": n, "height": height, "width": width, "half": given.dtype == np.float16}
    return shape | ({"channels": channels} if channels > 6 else {})


def random(channels: int, height: int, width: int, half: bool, scale: float = 1.0) -> npt.NDArray[Any]:
    values = np.random.default_rng(height + width).normal(scale=scale, size=(N, channels, height, width))
    return values.astype(np.float16 if half else np.float32)


def assert_labels(found: npt.NDArray[np.uint8], logits: npt.NDArray[np.float64], margin: int) -> None:
    """Equal, but where the two best logits are one within rounding."""
    best = np.sort(logits, axis=1)
    tied = reference.cropped(best[:, -1] - best[:, -2] < 1e-5, margin)
    wanted = reference.cropped(reference.labels(logits), margin)
    assert found.shape == wanted.shape
    np.testing.assert_array_equal(found[~tied], wanted[~tied])
    assert tied.mean() < 0.001


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("margin", [0, 3, 16])
@pytest.mark.parametrize(("channels", "height", "width"), [(54, 32, 32), (56, 16, 48), (54, 21, 37)])
def test_taps_to_labels(machine: Machine, channels: int, height: int, width: int, margin: int, half: bool) -> None:
    if 2 * margin >= 2 * height:
        margin = height - 1
    taps = random(channels, height, width, half)
    logits = reference.logits(taps)
    labels, confidences = labelled(machine, taps, margin)
    assert_labels(labels, logits, margin)
    wanted = reference.cropped(reference.confidences(logits), margin)
    assert np.abs(confidences - wanted).max() <= 0.501  # rounded
    bare, untouched = labelled(machine, taps, margin, confident=False)
    np.testing.assert_array_equal(bare, labels)
    assert (untouched == 0xFF).all()


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("margin", [0, 5])
def test_logits_to_labels(machine: Machine, margin: int, half: bool) -> None:
    logits = random(6, 64, 96, half, scale=4)
    labels, confidences = labelled(machine, logits, margin)
    exact = logits.astype(np.float64)
    assert_labels(labels, exact, margin)
    assert np.abs(confidences - reference.cropped(reference.confidences(exact), margin)).max() <= 0.501


@pytest.mark.parametrize("half", [True, False])
def test_probabilities(machine: Machine, half: bool) -> None:
    taps, logits = random(56, 16, 48, half), random(6, 32, 40, half, scale=8)
    for given, exact in ((taps, reference.logits(taps)), (logits, logits.astype(np.float64))):
        found = shared(machine, given)
        assert np.abs(found - reference.probabilities(exact)).max() <= 1e-6
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


def test_the_order_of_threads_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    taps = random(54, 21, 37, True)
    forwards, back = (Machine(emulated_kernels(monkeypatch, backwards=b)) for b in (False, True))
    np.testing.assert_array_equal(labelled(forwards, taps, 3), labelled(back, taps, 3))


def test_the_first_of_equal_classes_wins(machine: Machine) -> None:
    logits = np.zeros((1, 6, 32, 32), np.float32)
    logits[:, 2:4] = 1
    labels, confidences = labelled(machine, logits, 0)
    assert (labels == 3).all()
    share = np.e / (2 * np.e + 4)
    assert (confidences == round(255 * share)).all()


def test_logits_far_apart_overflow_nothing(machine: Machine) -> None:
    logits = np.full((1, 6, 32, 32), -6e4, np.float16)
    logits[:, 5] = 6e4
    labels, confidences = labelled(machine, logits, 0)
    assert (labels == 0).all()
    assert (confidences == 255).all()
    np.testing.assert_array_equal(shared(machine, logits)[0, :, 0, 0], [0, 0, 0, 0, 0, 1])
