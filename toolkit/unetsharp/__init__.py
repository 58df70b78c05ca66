"""U-Net# nuclei segmentation in H&E histology: train, export, build engines, infer, and prove what each step cost.

import unetsharp
model = unetsharp.load("bundle/")           # or weights, ONNX; nothing: the shipped edge weights
result = model.segment(image)               # uint8 [H, W, 3] of any size
result.counts, result.nuclei, result.overlay(), result.to_geojson("nuclei.geojson")
"""

from typing import TYPE_CHECKING, Any

from unetsharp_engines import __version__

if TYPE_CHECKING:
    from unetsharp.model import Model, load

__all__ = ["Model", "__version__", "load"]

_LAZY = ("Model", "load")
"""Of `unetsharp.model`, which needs numpy and more: the command line's ``--help`` must not."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from unetsharp import model

    return getattr(model, name)


def __dir__() -> list[str]:
    return sorted(__all__)
