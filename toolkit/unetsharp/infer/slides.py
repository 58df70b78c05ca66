"""A whole slide, segmented field by field: its size costs time and disk, not memory."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from unetsharp.infer.box import Box
from unetsharp.infer.fields import Field, fields_of
from unetsharp.infer.glass import is_glass, stained
from unetsharp.infer.images import Slide
from unetsharp.infer.nuclei import Nucleus, find_nuclei
from unetsharp.infer.resolution import Scale, check_mpp
from unetsharp.infer.segmentation import Clock, Found, Settings, blended
from unetsharp.infer.staining import ESTIMATE_PIXELS, PictureStain, plan_for
from unetsharp.infer.tiling import Grid
from unetsharp.infer.unfinished import Unfinished
from unetsharp_engines.contract import TILE
from unetsharp_engines.runtimes.base import Runtime

__all__ = ["SlideSegmentation", "segment_slide"]

OVERVIEW_PX: int = 4000
"""Longer side of the picture that a slide is shown as."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SlideSegmentation(Found):
    """What was found in one slide; its nuclei and classes lie on disk."""

    file_sha256: str

    @property
    def digest(self) -> str:
        """SHA-256 of the slide's file: what nucleus ids are made from."""
        return self.file_sha256


def segment_slide(
    slide: Slide,
    runtime: Runtime,
    settings: Settings,
    *,
    mpp: float,
    file_sha256: str,
    unfinished: Unfinished,
    advance: Callable[[int], None] = lambda _tiles: None,
) -> SlideSegmentation:
    """Find the nuclei of ``slide`` at ``mpp`` µm per pixel; fields that ``unfinished`` has are left as they are.

    ``advance`` is told how many tiles are done. The result's nuclei and classes are those of ``unfinished``.
    """
    clock = Clock()
    scale = Scale(slide.height, slide.width, check_mpp(mpp))
    with clock("read"):
        overview = slide.overview(OVERVIEW_PX)
    with clock("stain"):
        stain = plan_for(_sample(slide, scale, overview), settings.stain, runtime.info.stain)
    work = _Work(slide, scale, runtime, settings, stain, clock)
    grid = Grid.over(scale.network_size, tile=runtime.info.tile, overlap=settings.overlap)
    for index, field in enumerate(fields_of(grid)):
        if unfinished.has(index):
            advance(field.grid.tiles)
        else:
            unfinished.store(index, *work.on(field, advance, label=unfinished.keeps_classes))
    return SlideSegmentation(
        picture=overview,
        size=(slide.height, slide.width),
        mpp=mpp,
        classes=unfinished.classes,
        nuclei=unfinished.nuclei,
        model=runtime.info,
        stain=stain,
        seconds=clock.seconds,
        file_sha256=file_sha256,
    )


@dataclass(frozen=True)
class _Work:
    """What every field of a slide goes through."""

    slide: Slide
    scale: Scale
    runtime: Runtime
    settings: Settings
    stain: PictureStain
    clock: Clock

    def on(
        self, field: Field, advance: Callable[[int], None], *, label: bool
    ) -> tuple[list[Nucleus], npt.NDArray[np.uint8] | None, Box]:
        """The nuclei centred in a field's core, the labels of the slide's pixels there, and which pixels these are.

        Labels are None without ``label`` and where all is glass.
        """
        with self.clock("read"):
            picture = self.scale.part_to_network(self.slide.read, field.seen)
            pixels = self.scale.picture_part(field.core)
        if all(is_glass(field.grid.view(picture, position)) for position in field.grid.positions):
            advance(field.grid.tiles)
            return [], None, pixels
        with self.clock("network"):
            probabilities = blended(picture, field.grid, self.runtime, self.settings, self.stain, advance)
        with self.clock("classes"):
            labels = self.scale.to_picture_labels(probabilities, seen=field.seen, wanted=pixels) if label else None
        with self.clock("nuclei"):
            _, nuclei = find_nuclei(probabilities, self.scale, corner=field.seen[:2])
            down, across = self.scale.picture_per_network
            own = [n for n in nuclei if field.core.holds(n.centroid[0] / across, n.centroid[1] / down)]
        return own, labels, pixels


def _sample(slide: Slide, scale: Scale, overview: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Tiles of the slide to estimate its stains on, uint8 [N · T, T, 3], at most `ESTIMATE_PIXELS`.

    Evenly chosen of those that are half tissue in ``overview`` or more, or, where none is, of all: glass has no stain
    to tell, and the maximal concentrations would be percentiles of it.
    """
    height, width = scale.network_size
    rows, columns = max(1, height // TILE), max(1, width // TILE)
    tissue = Image.fromarray(stained(overview)).convert("L")
    shares = np.asarray(tissue.resize((columns, rows), Image.Resampling.BOX))
    places = np.argwhere(shares >= 128)
    if not len(places):
        places = np.argwhere(shares >= 0)
    chosen = places[np.linspace(0, len(places) - 1, min(len(places), ESTIMATE_PIXELS // TILE**2)).astype(int)]
    parts = (
        Box(r * TILE, c * TILE, min((r + 1) * TILE, height), min((c + 1) * TILE, width)) for r, c in chosen.tolist()
    )
    return np.concatenate([scale.part_to_network(slide.read, part) for part in parts])
