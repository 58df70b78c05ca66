"""Losses: closed forms, gradients, nuclei of unknown class, absent classes."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="losses are part of the train extra")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from unetsharp_trainer.data.pannuke import UNKNOWN  # noqa: E402
from unetsharp_trainer.training.losses import (  # noqa: E402
    ALPHA,
    BETA,
    GAMMA,
    SegmentationLoss,
    focal_tversky,
    foreground_of,
)

KINDS = ("paper", "author", "ce-dice")
NUCLEUS, BACKGROUND = 0, 5


def target_of(*rows: list[int]) -> "torch.Tensor":
    return torch.tensor([rows], dtype=torch.uint8)


def sure(target: "torch.Tensor", score: float = 60.0) -> "torch.Tensor":
    """Logits that put all probability on ``target``'s classes."""
    return score * torch.nn.functional.one_hot(target.long() % 6, 6).movedim(-1, 1).double()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("foreground_weight", [0.0, 1.0])
def test_all_right_costs_nothing_whatever_classes_are_absent(kind: str, foreground_weight: float) -> None:
    target = target_of([0, 0, 5], [5, 2, 5])
    assert SegmentationLoss(kind, foreground_weight)(sure(target), target).item() == pytest.approx(0, abs=1e-12)


def test_focal_tversky_of_one_class_is_the_formula() -> None:
    """Uniform over six classes, 3 of 4 pixels background: every soft count is known by hand."""
    target = target_of([5, 5], [5, 0])
    logits = torch.zeros(1, 6, 2, 2, dtype=torch.float64)
    p = 1 / 6
    terms = []
    for truth_pixels in (3, 1):
        tp, fn, fp = truth_pixels * p, truth_pixels * (1 - p), (4 - truth_pixels) * p
        terms.append((1 - tp / (tp + 0.3 * fn + 0.7 * fp)) ** (4 / 3))
    assert SegmentationLoss("paper")(logits, target).item() == pytest.approx(sum(terms), rel=1e-12)


def test_invented_pixels_cost_more_than_missed_ones() -> None:
    """β = 0.7 weighs false positives, α = 0.3 false negatives."""
    truth = torch.zeros(1, 1, 1, 8, dtype=torch.float64)
    truth[..., :4] = 1
    missed, invented = truth.clone(), truth.clone()
    missed[..., 3] = 0
    invented[..., 4] = 1
    known = torch.ones(1, 1, 8, dtype=torch.bool)
    assert focal_tversky(missed, truth, known, pooled=False).item() == pytest.approx((0.3 / (3 + 0.3)) ** (4 / 3))
    assert focal_tversky(invented, truth, known, pooled=False).item() == pytest.approx((0.7 / (4 + 0.7)) ** (4 / 3))


def test_pooled_term_is_mean_probability_of_the_truth() -> None:
    """Why the author's form does not feel β: over a softmax, pooled false positives equal pooled false negatives."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 5, 7, dtype=torch.float64, generator=generator)
    target = torch.randint(0, 6, (2, 5, 7), generator=generator).to(torch.uint8)
    of_truth = logits.softmax(1).gather(1, target.long()[:, None])
    assert SegmentationLoss("author")(logits, target).item() == pytest.approx((1 - of_truth.mean().item()) ** GAMMA)
    assert pytest.approx(1) == ALPHA + BETA


def test_cross_entropy_and_dice_by_hand() -> None:
    target = target_of([5, 5], [5, 0])
    logits = torch.zeros(1, 6, 2, 2, dtype=torch.float64)
    dice = [2 * n / 6 / (n + 4 / 6) for n in (3, 1)]  # 2·TP / (truth + predicted)
    expected = np.log(6) + 1 - np.mean(dice)
    assert SegmentationLoss("ce-dice")(logits, target).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_pixels_take_no_part_in_class_terms(kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 6, 4, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    target = torch.randint(0, 6, (1, 4, 4), generator=generator).to(torch.uint8)
    target[0, 1] = UNKNOWN
    SegmentationLoss(kind)(logits, target).backward()
    assert logits.grad is not None
    assert (logits.grad[0, :, 1] == 0).all()
    assert (logits.grad[0, :, 2] != 0).any()


@pytest.mark.parametrize("kind", KINDS)
def test_foreground_term_teaches_nuclei_of_unknown_class_without_naming_one(kind: str) -> None:
    """Its gradient lowers background there and raises every nucleus class in proportion to its probability."""
    logits = torch.zeros(1, 6, 2, 2, dtype=torch.float64, requires_grad=True)
    target = target_of([UNKNOWN, BACKGROUND], [BACKGROUND, BACKGROUND])
    SegmentationLoss(kind, 1.0)(logits, target).backward()
    assert logits.grad is not None
    at_nucleus = logits.grad[0, :, 0, 0]
    assert at_nucleus[BACKGROUND] > 0
    assert (at_nucleus[:5] < 0).all()
    assert torch.allclose(at_nucleus[:5], at_nucleus[0])


def test_foreground_probability_is_one_minus_background() -> None:
    logits = torch.randn(2, 6, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    two = foreground_of(logits).softmax(1)
    assert torch.allclose(two[:, 0], logits.softmax(1)[:, BACKGROUND])


@pytest.mark.parametrize("kind", KINDS)
def test_batch_of_nothing_but_unknown_nuclei_has_no_class_loss(kind: str) -> None:
    logits = torch.zeros(1, 6, 2, 2, requires_grad=True)
    loss = SegmentationLoss(kind)(logits, torch.full((1, 2, 2), UNKNOWN, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("foreground_weight", [0.0, 0.5])
def test_gradients(kind: str, foreground_weight: float) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 6, 3, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    target = torch.randint(0, 7, (2, 3, 3), generator=generator)
    target = torch.where(target == 6, UNKNOWN, target).to(torch.uint8)
    loss = SegmentationLoss(kind, foreground_weight)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), (logits,))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(KINDS), st.sampled_from([0.1, 5.0, 80.0]))
def test_loss_and_gradient_are_finite_and_loss_not_negative(seed: int, kind: str, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(1, 6, 4, 4, generator=generator)).requires_grad_()
    target = torch.randint(0, 7, (1, 4, 4), generator=generator)
    loss = SegmentationLoss(kind, 1.0)(logits, torch.where(target == 6, UNKNOWN, target).to(torch.uint8))
    loss.backward()
    assert loss.item() >= 0
    assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]


def test_half_precision_logits_are_summed_in_float32() -> None:
    """262,144 pixels: a bfloat16 sum would stop counting at 256."""
    logits = torch.zeros(1, 6, 512, 512, dtype=torch.bfloat16)
    target = torch.full((1, 512, 512), BACKGROUND, dtype=torch.uint8)
    p = 1 / 6
    expected = (1 - p / (p + 0.3 * (1 - p))) ** (4 / 3)
    assert SegmentationLoss("paper")(logits, target).item() == pytest.approx(expected, rel=1e-4)
