"""Patches whose pixels' colours say what `FakeRuntime`, or an ONNX that does the same, will answer."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from support.pannuke_folds import Arrays
from unetsharp_engines.contract import CLASSES, INPUT_NAME, OUTPUT_NAME, class_named
from unetsharp_engines.model_info import METADATA_KEY, ModelInfo
from unetsharp_engines.runtimes.fake import FakeRuntime

PAINTER_INFO = ModelInfo(name="painter", encoder="none", width=1, train_size=256, stain="none")

Square = tuple[str, int, int, int]
"""Class, row and column of the upper left corner, side."""

TruthAndSaid = tuple[str, list[Square], list[Square]]
"""A patch: its tissue, the true squares, the squares that will be predicted."""


def painted(squares: list[Square]) -> npt.NDArray[np.uint8]:
    """A patch, uint8 [256, 256, 3], on which `FakeRuntime` sees ``squares``."""
    image = np.full((256, 256, 3), FakeRuntime.COLORS["Background"], dtype=np.uint8)
    for name, row, column, side in squares:
        image[row : row + side, column : column + side] = FakeRuntime.COLORS[name]
    return image


def labelled(squares: list[Square]) -> npt.NDArray[np.float64]:
    """Masks in PanNuke's form, float64 [256, 256, 6], of ``squares``."""
    masks = np.zeros((256, 256, 6))
    for number, (name, row, column, side) in enumerate(squares):
        masks[row : row + side, column : column + side, class_named(name).channel] = 5 + 2 * number
    masks[..., 5] = ~masks[..., :5].any(-1)
    return masks


def fold_of(patches: list[TruthAndSaid]) -> Arrays:
    """A fold of ``patches``."""
    return {
        "images": np.stack([painted(said) for _, _, said in patches]),
        "masks": np.stack([labelled(true) for _, true, _ in patches]),
        "types": np.array([tissue for tissue, _, _ in patches]),
    }


def save_painter_onnx(path: Path) -> Path:
    """Write a network that answers as `FakeRuntime` does without stain normalization, and return ``path``.

    -|x - c|² differs between classes c by 2·c·x - |c|² alone, which is a 1×1 convolution of x.
    """
    colors = np.array([FakeRuntime.COLORS[c.name] for c in CLASSES]) / 255
    scale = (255 / FakeRuntime.REACH) ** 2
    weights = [
        numpy_helper.from_array((2 * scale * colors).astype(np.float32)[:, :, None, None], "w"),
        numpy_helper.from_array((-scale * (colors**2).sum(axis=1)).astype(np.float32), "b"),
    ]
    shape = [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, ["N", 3, 256, 256])]
    out = [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, ["N", len(CLASSES), 256, 256])]
    graph = helper.make_graph(
        [helper.make_node("Conv", [INPUT_NAME, "w", "b"], [OUTPUT_NAME])], "g", shape, out, weights
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {METADATA_KEY: PAINTER_INFO.to_json()})
    onnx.save(model, path)
    return path
