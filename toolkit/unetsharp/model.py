"""The Python API: load a network once, segment pictures with it."""

from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from unetsharp.infer.segmentation import Segmentation, Settings, segment
from unetsharp.infer.staining import StainSetting
from unetsharp_engines.contract import MPP
from unetsharp_engines.model_info import ModelInfo
from unetsharp_engines.runtimes.base import Runtime

__all__ = ["Model", "load"]


class Model:
    """A network, ready to segment. Used as a context manager it closes its runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        """What runs the network."""

    @property
    def info(self) -> ModelInfo:
        """What the network is, and which classes it was never taught."""
        return self.runtime.info

    def segment(
        self,
        image: npt.NDArray[np.uint8],
        *,
        mpp: float = MPP,
        stain: str = "slide",
        overlap: int | None = None,
        batch: int | None = None,
    ) -> Segmentation:
        """Find the nuclei of ``image``, RGB uint8 [H, W, 3] of any size, at ``mpp`` µm per pixel.

        ``stain`` is ``slide`` (one transform for the picture), ``tile``, ``none`` or ``fixed:FILE``; ``overlap`` is
        what neighbouring tiles share, in pixels of 0.25 µm, half a tile where it is None; ``batch`` tiles are run at
        once, as many as suit the runtime where it is None. Raises InputError for values out of bounds.
        """
        settings = Settings(stain=StainSetting.parse(stain), overlap=overlap, batch=batch)
        return segment(image, self.runtime, settings, mpp=mpp)

    def close(self) -> None:
        """Give back what the runtime holds."""
        self.runtime.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(model: str | Path | None = None, *, runtime: str = "auto", trust: bool = False) -> Model:
    """Load a bundle, an ONNX file or weights; without ``model`` the edge-sized network that ships.

    ``runtime`` is ``auto``, ``onnxruntime``, ``tensorrt``, ``tensorrt-rtx`` or ``torch``. An engine is code: ``trust``
    says that a bundle's may run though others built it. Raises InputError for a file that is none of these,
    MissingCapabilityError for a runtime that this machine lacks.
    """
    from unetsharp.runtimes import open_runtime

    return Model(open_runtime(None if model is None else Path(model), runtime, trust=trust))
