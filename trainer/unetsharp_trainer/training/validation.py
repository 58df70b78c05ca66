"""How well the network does on whole patches, over all processes."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from unetsharp_trainer.metrics.confusion import ConfusionMatrix
from unetsharp_trainer.training.distributed import World
from unetsharp_trainer.training.sampling import Bytes, PatchSource, to_input

__all__ = ["predict", "validate"]

BATCH = 8


@torch.inference_mode()
def predict(model: nn.Module, images: Bytes, device: torch.device, precision: torch.dtype) -> torch.Tensor:
    """Logits float32 [N, 6, H, W] on ``device`` for uint8 [N, H, W, 3]; the model's mode is the caller's."""
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        logits: torch.Tensor = model(to_input(torch.from_numpy(images), device))
    return logits.float()


def validate(
    model: nn.Module, sources: Sequence[PatchSource], loss: nn.Module, world: World, precision: torch.dtype
) -> tuple[ConfusionMatrix, float]:
    """Pixel counts of ``model`` on ``sources``, and the mean over patches of each patch's own loss.

    Processes share the batches out and add their counts up, so the counts are those of a single process, exactly.
    Leaves the model in eval mode.
    """
    model.eval()
    matrix, losses = ConfusionMatrix(), np.zeros(2)
    for number, (images, targets) in enumerate(_batches(sources)):
        if number % world.size == world.rank:
            logits = predict(model, images, world.device, precision)
            truth = torch.from_numpy(targets).to(world.device)
            matrix.add(targets, logits.argmax(1).cpu().numpy())
            losses += sum(float(loss(logits[i : i + 1], truth[i : i + 1])) for i in range(len(truth))), len(truth)
    total = _summed(matrix, world)
    losses = world.total(losses)
    return total, float(losses[0] / losses[1])


def _batches(sources: Sequence[PatchSource]) -> Iterator[tuple[Bytes, Bytes]]:
    for source in sources:
        for start in range(0, len(source.images), BATCH):
            yield np.array(source.images[start : start + BATCH]), np.array(source.targets[start : start + BATCH])


def _summed(matrix: ConfusionMatrix, world: World) -> ConfusionMatrix:
    counts = np.vstack([matrix.counts, matrix.unknown[None]]).astype(np.float64)
    total = world.total(counts).astype(np.int64)
    return ConfusionMatrix(total[:-1], total[-1])
