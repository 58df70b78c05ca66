"""A network that INT8 can serve, easily or hardly, and labelled patches that it gets right."""

from pathlib import Path

import numpy as np
import onnx

from support.painted_folds import PAINTER_INFO, fold_of
from support.pannuke_folds import released
from support.small_graphs import SmallGraph
from unetsharp_engines.contract import CLASSES, INPUT_NAME, NUCLEUS_CLASSES
from unetsharp_engines.model_info import METADATA_KEY
from unetsharp_engines.runtimes.fake import FakeRuntime

SCALES = np.array([1e3, 1.0, 1e-3, 1.0, 1.0, 1.0, 1.0, 1.0])


def painted_folder(root: Path) -> Path:
    """Three folds of four patches, painted with squares of every class."""
    for number in (1, 2, 3):
        patches = []
        for patch in range(4):
            squares = [
                (c.name, 8 + 48 * i, 8 * (patch + number), 20 + 4 * patch) for i, c in enumerate(NUCLEUS_CLASSES)
            ]
            patches.append((("Breast", "Colon")[patch % 2], squares, squares))
        released(root, number, fold_of(patches))
    return root


def painter(path: Path, *, hard: bool, kernel: int = 1, gain: float = 1.0, locked: bool = True) -> Path:
    """A network that names each pixel's class by its colour, through two convolutions that INT8 could serve.

    Made ``hard``, the channels between the two lie 10⁶ apart, and the second one's weights make up for it. One channel
    is dead: its BatchNorm has seen a variance of 1e-22. ``kernel`` is the second convolution's.
    Unless ``locked``, nothing between the two keeps a factor from being moved from one to the other.
    All values are ``gain`` times the colours' until the head makes up for it.
    """
    graph = SmallGraph(side=256)
    colors = np.array([FakeRuntime.COLORS[c.name] for c in CLASSES]) / 255
    pass_on = np.eye(8)
    pass_on[7] = 0.0  # the dead channel is its bias
    scales = SCALES if hard else np.ones(8)

    def conv(x: str, weight: np.ndarray, bias: np.ndarray, name: str, size: int = 1) -> str:
        y = graph.conv(x, weight.shape[1], weight.shape[0], name, kernel=size)
        spread = np.zeros((*weight.shape, size, size))
        spread[:, :, size // 2, size // 2] = weight
        graph.replace(f"{name}.weight", spread)
        graph.replace(f"{name}.bias", bias)
        return y

    x = graph.op("Relu", conv(INPUT_NAME, gain * np.eye(8, 3), np.zeros(8), "first"))
    x = graph.op("Relu", conv(x, pass_on * scales[:, None], np.zeros(8), "spreading"))
    if locked:
        x = graph.op("Add", x, graph.constant(np.zeros((1, 8, 1, 1), np.float32)))
    x = graph.op("Relu", conv(x, pass_on / scales, np.array([0, 0, 0, 0, 0, 0, 0, 0.25]), "gathering", kernel))
    statistics = [np.ones(8), np.zeros(8), np.zeros(8), np.ones(8)]
    statistics[2][7], statistics[3][7] = 0.25, 1e-22
    x = graph.op("BatchNormalization", x, *[graph.constant(s.astype(np.float32)) for s in statistics])
    sharpness = (255 / FakeRuntime.REACH) ** 2
    head = np.concatenate([2 * sharpness / gain * colors, np.zeros((6, 4)), np.ones((6, 1))], axis=1)
    model = graph.model(conv(x, head, -sharpness * (colors**2).sum(axis=1), "head", size=3))
    onnx.helper.set_model_props(model, {METADATA_KEY: PAINTER_INFO.to_json()})
    onnx.save(model, path)
    return path
