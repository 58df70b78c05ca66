"""Retrain a network's last layers on the CPU, with the classes that its data never shows silenced.

    OMP_NUM_THREADS=1 python benchmarks/edge/retrain_head.py WEIGHTS OPEN_DATA --out edge.safetensors

OPEN_DATA is what ``make_open_data.py`` wrote. The rest of the network, running statistics included, stays as it is.
"""

import argparse
from pathlib import Path

import torch

from unetsharp_engines.contract import CLASSES
from unetsharp_trainer.data.pannuke import open_folds
from unetsharp_trainer.data.prepared import CACHE_NAME, prepare
from unetsharp_trainer.data.wide_augment import wide_augmentation
from unetsharp_trainer.network import load_weights, save_weights
from unetsharp_trainer.training.distributed import World
from unetsharp_trainer.training.losses import SegmentationLoss
from unetsharp_trainer.training.optimizers import build_optimizer, rate_factor, set_rate
from unetsharp_trainer.training.sampling import EpochSampler, TrainingWindows, to_input, training_loader
from unetsharp_trainer.training.settings import SCRATCH

BATCH = 8
RATE = 2e-3
LIFT = 10.0
"""Added to all other logits at the end, which softmax does not see, so that they stay above the silenced ones."""


def main() -> None:
    """Train, print the loss, write the weights in half precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("data", type=Path, help="what make_open_data.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="weights to write")
    parser.add_argument("--steps", type=int, default=160)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model, info = load_weights(arguments.weights)
    model = model.to(memory_format=torch.channels_last)
    taught = [c.channel for c in CLASSES if c.name not in info.untaught]
    model.silence_classes([c.channel for c in CLASSES if c.name in info.untaught])
    learning = [*model.decoder.nodes["d1"].get_submodule("fuse").parameters(), *model.head.parameters()]
    model.requires_grad_(False)
    for parameter in learning:
        parameter.requires_grad_(True)
    (fold,) = prepare([open_folds(arguments.data)[1]], arguments.data / CACHE_NAME, stain="none", workers=1)
    sampler = EpochSampler(patches=len(fold), batch=BATCH, world=World(), seed=1, epochs=None)
    windows = training_loader(TrainingWindows([fold], wide_augmentation(256), 1), sampler, workers=0, pin=False)
    optimizer, loss = build_optimizer(SCRATCH, learning), SegmentationLoss("ce-dice", 1.0)
    total = 0.0
    for step, (images, targets) in zip(range(arguments.steps), windows, strict=False):
        set_rate(optimizer, rate_factor(SCRATCH, step, arguments.steps) * RATE)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(to_input(images, torch.device("cpu")))
        value = loss(logits, targets)
        value.backward()
        optimizer.step()
        total += value.item()
        if (step + 1) % 20 == 0:
            print(f"step {step + 1}: loss {total / 20:.4f}", flush=True)
            total = 0.0
    assert model.head.bias is not None
    with torch.no_grad():
        model.head.bias[taught] += LIFT
    save_weights(arguments.out, model, info, half=True)


if __name__ == "__main__":
    main()
