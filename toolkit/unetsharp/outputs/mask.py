"""The class of every pixel, as an indexed PNG that looks like what it says."""

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from unetsharp_engines.contract import CLASSES
from unetsharp_engines.files import replacing

if TYPE_CHECKING:
    from unetsharp.infer.segmentation import Segmentation

__all__ = ["write"]


def write(segmentation: "Segmentation", path: Path) -> None:
    """Write the label image of the picture's size: index 0 background, 1 to 5 nuclei, in the classes' colours.

    8 bits a pixel, which every reader takes; Pillow gives the labels, readers that expand palettes the colours.
    """
    image = Image.fromarray(segmentation.classes)
    image.putpalette([level for c in sorted(CLASSES, key=lambda c: c.label) for level in c.color])
    with replacing(path) as temporary:
        image.save(temporary, format="PNG", bits=8)
