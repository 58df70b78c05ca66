"""Losses on class maps, some of whose nuclei have no known class.

Targets are uint8 [N, H, W]: the network's channel index 0 to 5 (`unetsharp_engines.contract.CLASSES`; 5 is
background), or `UNKNOWN` (255) where there is a nucleus whose class nobody stated. Unknown pixels take part in no class
term; they are nuclei in the foreground term, which ``foreground_weight`` > 0 adds.

Tversky's index of a class is ``TI = TP / (TP + α·FN + β·FP)`` with soft counts: p being the softmax probability and
g the 0/1 truth, TP = Σ p·g, FN = Σ (1−p)·g, FP = Σ p·(1−g), summed over the batch's pixels. α = 0.3 weighs what is
missed, β = 0.7 what is invented. The focal form is ``(1 − TI)^γ`` with γ = 4/3.

Abraham & Khan (2019, "A novel focal Tversky loss function") write the exponent as 1/γ and set γ = 4/3, which makes it
3/4. U-Net#'s published code raises to 4/3 itself, as most code that cites them does, and so do both forms here: 4/3
keeps the gradient finite as TI → 1, where the exponent 3/4 sends it to infinity.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unetsharp_engines.contract import BACKGROUND, CLASSES
from unetsharp_trainer.data.pannuke import UNKNOWN

__all__ = ["ALPHA", "BETA", "GAMMA", "SegmentationLoss", "focal_tversky", "foreground_of"]

ALPHA = 0.3
BETA = 0.7
GAMMA = 4 / 3


class SegmentationLoss(nn.Module):
    """The training loss: a class loss on pixels of known class, plus a foreground loss on all of them.

    ``kind`` is `Recipe.loss`: ``paper`` (Focal Tversky summed over classes), ``author`` (one pooled term) or
    ``ce-dice`` (cross-entropy plus Dice); ``foreground_weight`` ≥ 0 scales the same on nucleus against background.
    """

    def __init__(self, kind: str, foreground_weight: float = 0.0) -> None:
        super().__init__()
        self.kind = kind
        self.foreground_weight = foreground_weight

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of ``logits`` [N, 6, H, W], any float type, against ``target`` uint8 [N, H, W]; a scalar, float32 or 64.

        Computed in float32 at least: sums over half a million pixels do not fit half precision.
        """
        logits = logits if logits.dtype == torch.float64 else logits.float()
        known = target != UNKNOWN
        classes = torch.where(known, target, BACKGROUND.channel).long()
        loss = self._loss(logits, classes, known)
        if self.foreground_weight > 0:
            nucleus = (target != BACKGROUND.channel).long()
            loss = loss + self.foreground_weight * self._loss(foreground_of(logits), nucleus, torch.ones_like(known))
        return loss

    def _loss(self, logits: Tensor, classes: Tensor, known: Tensor) -> Tensor:
        truth = F.one_hot(classes, logits.shape[1]).movedim(-1, 1).to(logits.dtype) * known[:, None]
        if self.kind == "ce-dice":
            return _cross_entropy(logits, classes, known) + _dice_loss(logits.softmax(1), truth, known)
        return focal_tversky(logits.softmax(1), truth, known, pooled=self.kind == "author")


def focal_tversky(probability: Tensor, truth: Tensor, known: Tensor, *, pooled: bool) -> Tensor:
    """Focal Tversky loss of ``probability`` and 0/1 ``truth`` (both [N, C, H, W]) over pixels ``known`` [N, H, W].

    ``pooled`` False: Σ over classes of (1 − TI_c)^γ, each class with its own index, as the paper writes it. A class
    that the batch's truth does not show has no true positives to weigh against, so it adds nothing; inventing it is
    punished all the same, since softmax takes that probability from the classes that are there. All right gives 0.

    ``pooled`` True: one index from counts summed over classes, as the author's code runs it. Every pixel's
    probabilities and truth both sum to one, hence ΣFN = ΣFP, and with α + β = 1 the index is the mean probability of
    the true class: β drops out.
    """
    true_positive, false_negative, false_positive = _soft_counts(probability, truth, known)
    if pooled:
        true_positive, false_negative, false_positive = (
            counts.sum(0, keepdim=True) for counts in (true_positive, false_negative, false_positive)
        )
    present = true_positive + false_negative > 0
    denominator = true_positive + ALPHA * false_negative + BETA * false_positive
    missed = (ALPHA * false_negative + BETA * false_positive) / denominator.where(present, 1)  # 1 − TI
    return (missed.where(present, 0) ** GAMMA).sum()


def foreground_of(logits: Tensor) -> Tensor:
    """Two-class logits [N, 2, H, W], background then nucleus, as probable as ``logits`` [N, 6, H, W] make them."""
    nuclei = [c.channel for c in CLASSES if c != BACKGROUND]
    return torch.stack([logits[:, BACKGROUND.channel], logits[:, nuclei].logsumexp(1)], 1)


def _soft_counts(probability: Tensor, truth: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """TP, FN and FP per class, each [C]."""
    over = (0, 2, 3)
    probability = probability * known[:, None]
    true_positive = (probability * truth).sum(over)
    return true_positive, truth.sum(over) - true_positive, probability.sum(over) - true_positive


def _cross_entropy(logits: Tensor, classes: Tensor, known: Tensor) -> Tensor:
    """Mean over all pixels, unknown ones counting 0, so that it is linear in the batch and accumulates exactly."""
    return (F.cross_entropy(logits, classes, reduction="none") * known).mean()


def _dice_loss(probability: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """1 − soft Dice, mean over the classes that the batch's truth shows; 0 where it shows none."""
    true_positive, false_negative, false_positive = _soft_counts(probability, truth, known)
    present = true_positive + false_negative > 0
    total = 2 * true_positive + false_negative + false_positive
    wrong = (false_negative + false_positive) / total.where(present, 1)
    return wrong.where(present, 0).sum() / present.sum().clamp(min=1)
