"""A runtime without a network, for tests: what it answers is known from the pixels' colours alone."""

import numpy as np
import numpy.typing as npt

from unetsharp_engines import __version__
from unetsharp_engines.contract import CLASSES
from unetsharp_engines.model_info import ModelInfo
from unetsharp_engines.runtimes.base import Runtime, network_input
from unetsharp_engines.stain import StainPlan

__all__ = ["FakeRuntime"]

_COLORS: dict[str, tuple[int, int, int]] = {
    "Neoplastic": (96, 40, 140),
    "Inflammatory": (40, 32, 96),
    "Connective": (150, 80, 170),
    "Dead": (60, 20, 60),
    "Epithelial": (110, 90, 190),
    "Background": (236, 190, 220),
}


class FakeRuntime(Runtime):
    """Answers, for each pixel, the class whose colour in `COLORS` is nearest to the pixel's.

    Logits are -(distance / `REACH`)², so a pixel of exactly such a colour has its class with a probability above
    0.99, and pixels do not see their neighbours. White and glass are background, dark purple is a nucleus: real
    pictures give plausible nuclei too. It ships so that your tests of what comes after the network need none.
    """

    COLORS = _COLORS
    """RGB levels by class name: paint these to get these classes, with a `StainPlan` of `IDENTITY`."""

    REACH = 20.0
    """Distance in levels at which a class's logit has fallen by one."""

    def __init__(self, info: ModelInfo | None = None) -> None:
        """Pass as whatever network ``info`` says; by default one that calls itself ``fake``."""
        fake = ModelInfo(name="fake", encoder="none", width=1, train_size=256)
        super().__init__(info=info or fake, name="fake", version=__version__, device="cpu")

    def _logits(self, tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan) -> npt.NDArray[np.float32]:
        levels_NCHW = network_input(tiles_NHWC, stain) * np.float32(255)
        logits = np.empty((len(tiles_NHWC), len(CLASSES), *tiles_NHWC.shape[1:3]), np.float32)
        for tissue_class in CLASSES:
            color = np.array(self.COLORS[tissue_class.name], np.float32).reshape(3, 1, 1)
            logits[:, tissue_class.channel] = -(((levels_NCHW - color) / np.float32(self.REACH)) ** 2).sum(axis=1)
        return logits
