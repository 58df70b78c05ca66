"""Chains of made-up networks on painted patches, of which all is known beforehand."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from support.painted_folds import PAINTER_INFO, Square, TruthAndSaid, fold_of
from support.pannuke_folds import released
from unetsharp.validate.chain import Chain, Step
from unetsharp.validate.observing import Observed, observe
from unetsharp.validate.tally import read_patch
from unetsharp_engines.contract import class_named
from unetsharp_engines.runtimes.base import Runtime
from unetsharp_engines.runtimes.fake import FakeRuntime
from unetsharp_engines.stain import StainPlan
from unetsharp_trainer.data.pannuke import Fold, open_folds

Change = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]

SQUARES: list[Square] = [("Neoplastic", 16, 16, 32), ("Epithelial", 128, 64, 16), ("Inflammatory", 64, 128, 20)]


class Changed(FakeRuntime):
    """The fake network, with its logits [N, 6, H, W] changed."""

    def __init__(self, change: Change) -> None:
        super().__init__(PAINTER_INFO)
        self._change = change

    def _logits(self, tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan) -> npt.NDArray[np.float32]:
        return self._change(super()._logits(tiles_NHWC, stain))


def same(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return logits


def swapped(first: str, second: str) -> Change:
    """Takes one class for the other."""
    a, b = class_named(first).channel, class_named(second).channel

    def change(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        taken = logits.copy()
        taken[:, [a, b]] = logits[:, [b, a]]
        return taken

    return change


def step(key: str, open_it: Callable[[], Runtime], precision: str = "int8") -> Step:
    return Step(key=key, title=key, precision=precision, origin="", size=1, sha256="", open=open_it)


def chain(*steps: Step) -> Chain:
    reference = step("reference", partial(Changed, same), "fp32")
    return Chain(steps=(reference, *steps), info=PAINTER_INFO, sides=(256, 256), quantization=None, left_out=())


def painted_fold(root: Path, patches: Sequence[TruthAndSaid]) -> Fold:
    released(root, 3, fold_of(list(patches)))
    return open_folds(root)[3]


def observed(fold: Fold, *steps: Step) -> Observed:
    return observe(chain(*steps), [partial(read_patch, fold, index, (256, 256)) for index in range(len(fold))])
