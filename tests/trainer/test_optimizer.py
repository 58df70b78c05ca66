"""AdaBound against the paper's update, written out; the learning rate's course."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="optimizers are part of the train extra")
pytest.importorskip("adabound", reason="AdaBound is part of the train extra")

from unetsharp_trainer.training.optimizers import build_optimizer, rate_factor, step  # noqa: E402
from unetsharp_trainer.training.settings import PAPER, SCRATCH  # noqa: E402


def adabound_by_hand(start: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """Luo et al. 2019, "Adaptive Gradient Methods with Dynamic Bound of Learning Rate", algorithm 2, with Adam's bias
    correction and the bounds of its section 4: final·(1 − 1/(γt+1)) and final·(1 + 1/(γt)).

    (The algorithm divides the clipped rate by √t for its regret bound; the authors' code, and so the paper's
    experiments, do not.)
    """
    rate, beta1, beta2, final, gamma, epsilon = 1e-4, 0.9, 0.999, 0.1, 1e-3, 1e-8
    x, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for t, gradient in enumerate(gradients, start=1):
        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient**2
        corrected = rate * np.sqrt(1 - beta2**t) / (1 - beta1**t)
        lower, upper = final * (1 - 1 / (gamma * t + 1)), final * (1 + 1 / (gamma * t))
        x = x - np.clip(corrected / (np.sqrt(v) + epsilon), lower, upper) * m
    return x


def test_adabound_steps_as_its_paper_says() -> None:
    """Gradients from 1e-7 to 1e3, so that some steps hit the lower bound, some the upper, some neither."""
    rng = np.random.default_rng(0)
    start = rng.normal(size=12)
    scale = 10.0 ** np.linspace(-7, 3, 12)
    gradients = [rng.normal(size=12) * scale for _ in range(60)]
    parameter = torch.nn.Parameter(torch.tensor(start))
    optimizer = build_optimizer(PAPER, [parameter])
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient)
        step(optimizer)
    np.testing.assert_allclose(parameter.detach().numpy(), adabound_by_hand(start, gradients), rtol=1e-9)


def test_only_adabounds_own_deprecation_is_silenced() -> None:
    class Loud(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            warnings.warn("something else", UserWarning, stacklevel=1)

    with pytest.warns(UserWarning, match="something else"):
        step(Loud([torch.nn.Parameter(torch.zeros(1))], lr=0.1))


def test_paper_keeps_its_rate_and_one_cycle_rises_then_falls_to_zero() -> None:
    assert {rate_factor(PAPER, index, 100) for index in range(100)} == {1.0}
    cycle = [rate_factor(SCRATCH, index, 100) for index in range(100)]
    top = int(np.argmax(cycle))
    assert top == 10
    assert cycle[top] == 1.0
    assert (np.diff(cycle[: top + 1]) > 0).all()
    assert (np.diff(cycle[top:]) < 0).all()
    assert 0 < cycle[-1] < 0.01


@pytest.mark.parametrize("total", [1, 2, 3])
def test_cycle_of_few_steps_still_moves(total: int) -> None:
    assert all(0 < rate_factor(SCRATCH, index, total) <= 1 for index in range(total))
