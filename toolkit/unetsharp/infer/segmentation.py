"""One picture, segmented: the result, and the steps that make it."""

import hashlib
import time
import uuid
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from unetsharp.infer.glass import is_glass
from unetsharp.infer.nuclei import Nucleus, find_nuclei
from unetsharp.infer.resolution import Scale, check_mpp
from unetsharp.infer.staining import PictureStain, StainSetting, plan_for
from unetsharp.infer.tiling import Grid, blend
from unetsharp_engines.contract import MPP, NUCLEUS_CLASSES
from unetsharp_engines.errors import InputError
from unetsharp_engines.model_info import ModelInfo
from unetsharp_engines.runtimes.base import Runtime

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Clock", "Found", "Segmentation", "Settings", "blended", "segment"]

COARSE_MPP: float = 0.3
"""Above this, µm per pixel, a picture has visibly less detail than the network was trained on."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How pictures are segmented."""

    stain: StainSetting
    overlap: int | None = None
    """Pixels that neighbouring tiles share, at the network's resolution; half a tile where it is None."""
    batch: int | None = None
    """Tiles that the runtime gets at once, as many as suit it where it is None; changes only speed and memory."""

    def __post_init__(self) -> None:
        if self.batch is not None and self.batch < 1:
            raise InputError(f"a batch of {self.batch} tiles cannot be run; give 1 or more")


@dataclass(frozen=True, kw_only=True, eq=False)
class Found(ABC):
    """What was found in one picture or slide: what all outputs are written from."""

    picture: npt.NDArray[np.uint8]
    """The picture, RGB uint8 [h, w, 3]; of a slide an overview."""
    size: tuple[int, int]
    """Height and width in pixels at full resolution."""
    mpp: float
    """µm per pixel at full resolution."""
    classes: npt.NDArray[np.uint8] | None
    """Label of the most probable class of each pixel at full resolution, uint8 [H, W]: background 0, nuclei 1 to 5.
    None for a slide of which no mask was asked."""
    nuclei: Iterable[Nucleus]
    """Those of a slide lie in files: they are read anew each time they are gone through."""
    model: ModelInfo
    """The network."""
    stain: PictureStain
    """How stains were normalized."""
    seconds: dict[str, float]
    """Time of each stage."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of what was segmented: what nucleus ids are made from."""

    @cached_property
    def counts(self) -> dict[str, int]:
        """Nuclei by class name. Classes the network was never taught have no entry: it cannot count them."""
        found = Counter(nucleus.tissue_class.name for nucleus in self.nuclei)
        return {c.name: found[c.name] for c in NUCLEUS_CLASSES if c.name not in self.model.untaught or found[c.name]}

    @property
    def area_mm2(self) -> float:
        """Area of the picture, mm²."""
        height, width = self.size
        return float(height * width * self.mpp**2 / 1e6)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to keep in mind about this result, one sentence each."""
        coarse = f"at {self.mpp:g} µm/px it has less detail than the {MPP} µm/px the network was trained at"
        return (coarse,) * (self.mpp > COARSE_MPP) + self.stain.warnings

    def id_of(self, nucleus: Nucleus) -> str:
        """A UUID: equal outlines in equal pictures have equal ids, in every run and every file."""
        return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self.digest}:{nucleus.polygon.tobytes().hex()}"))

    def overlay(self) -> "Image":
        """The picture with every nucleus outlined in its class's colour, and a legend (`outputs.overlay.draw`)."""
        from unetsharp.outputs.overlay import draw

        return draw(self)

    def to_geojson(self, path: str | Path) -> None:
        """Write the nuclei as a GeoJSON FeatureCollection that QuPath opens (`outputs.geojson.write`)."""
        from unetsharp.outputs import geojson

        geojson.write(self, Path(path))

    def to_csv(self, path: str | Path) -> None:
        """Write one line a nucleus (`outputs.tables.write_nuclei`)."""
        from unetsharp.outputs import tables

        tables.write_nuclei(self, Path(path))


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation(Found):
    """What was found in one picture, held in memory."""

    classes: npt.NDArray[np.uint8]
    nuclei: tuple[Nucleus, ...]
    """In reading order of their topmost pixels."""
    probabilities: npt.NDArray[np.float16]
    """Class probabilities, float16 [6, h, w], at the network's resolution, channels as `contract.CLASSES`."""
    instances: npt.NDArray[np.int32]
    """Number of the nucleus each pixel belongs to, int32 [h, w], 0 for none; number n is ``nuclei[n - 1]``."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the picture's shape and pixels: what nucleus ids are made from."""
        digest = hashlib.sha256(repr(self.picture.shape).encode())
        digest.update(self.picture.tobytes())
        return digest.hexdigest()


def segment(
    picture: npt.NDArray[np.uint8],
    runtime: Runtime,
    settings: Settings,
    *,
    mpp: float = MPP,
    advance: Callable[[int], None] = lambda _tiles: None,
) -> Segmentation:
    """Find the nuclei of ``picture``, RGB uint8 [H, W, 3] of any size, at ``mpp`` µm per pixel.

    ``advance`` is told how many tiles are done. Raises InputError for other arrays and resolutions out of bounds.
    """
    clock = Clock()
    scale = Scale(*_size_of(picture), check_mpp(mpp))
    with clock("resample"):
        network_picture = scale.to_network(picture)
    with clock("stain"):
        stain = plan_for(network_picture, settings.stain, runtime.info.stain)
    with clock("network"):
        grid = Grid.over(scale.network_size, tile=runtime.info.tile, overlap=settings.overlap)
        probabilities = blended(network_picture, grid, runtime, settings, stain, advance)
    with clock("classes"):
        classes = scale.to_picture_labels(probabilities)
    with clock("nuclei"):
        instances, nuclei = find_nuclei(probabilities, scale)
    return Segmentation(
        picture=picture,
        size=picture.shape[:2],
        mpp=mpp,
        classes=classes,
        probabilities=probabilities,
        instances=instances,
        nuclei=nuclei,
        model=runtime.info,
        stain=stain,
        seconds=clock.seconds,
    )


def blended(
    picture: npt.NDArray[np.uint8],
    grid: Grid,
    runtime: Runtime,
    settings: Settings,
    stain: PictureStain,
    advance: Callable[[int], None],
) -> npt.NDArray[np.float16]:
    """`blend` of what ``runtime`` says of the tiles of ``picture``, uint8 [H, W, 3], that are no bare glass."""
    return blend(
        picture,
        grid,
        lambda batches: runtime.probabilities_of(batches, stain.plan),
        batch=settings.batch or runtime.batch,
        advance=advance,
        glass=is_glass,
    )


def _size_of(picture: npt.NDArray[np.uint8]) -> tuple[int, int]:
    kind = getattr(picture, "dtype", type(picture).__name__)
    shape: tuple[int, ...] = getattr(picture, "shape", ())
    if kind != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise InputError(
            f"the picture is {kind} of shape {shape}; it must be a numpy array, uint8 RGB of shape (height, width, 3)"
        )
    return shape[0], shape[1]


class Clock:
    """Seconds of named stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time that the block takes to ``stage``."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
