"""The contact sheet: patches as they are, stain-normalized and augmented, with what they are taught as."""

from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from unetsharp_engines.contract import NUCLEUS_CLASSES, TILE
from unetsharp_engines.errors import InputError
from unetsharp_engines.files import replacing
from unetsharp_engines.stain import StainStatus
from unetsharp_trainer.data.augment import Augmentation, paper_augmentation
from unetsharp_trainer.data.pannuke import UNKNOWN, Fold
from unetsharp_trainer.data.prepared import stain_normalized

__all__ = ["draw_sheet", "pick_patches", "require_picture", "save_sheet"]

_AUGMENTED = 4
"""Augmented versions a row."""
_ZOOM = 1.5
"""Sheet pixels a patch pixel."""
_CELL = round(TILE * _ZOOM)
_GAP, _MARGIN, _LABEL, _HEAD, _FOOT = 14, 40, 190, 150, 64
_PAPER, _INK, _SOFT, _AMBER, _GREY = "#fbfaf8", "#22211f", "#7a756d", "#b45309", (150, 150, 150)
_FEW_NUCLEUS_PIXELS = 1500
"""A patch with less on its nuclei is not picked while others are left."""

_Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One patch on the sheet."""

    index: int
    tissue: str
    nuclei: int
    status: StainStatus
    original: _Bytes
    normalized: _Bytes
    target: _Bytes
    augmented: list[tuple[_Bytes, _Bytes]]


def pick_patches(fold: Fold, count: int, seed: int) -> list[int]:
    """Indices of up to ``count`` random patches, tissues taking turns; those nearly without nuclei come last."""
    order = np.random.default_rng(seed).permutation(len(fold)).tolist()
    taken: dict[str, int] = {}
    ranked: list[tuple[int, int]] = []
    sparse: list[int] = []
    for index in order:
        tissue = fold.tissues[index]
        if len(ranked) >= 4 * count:
            break
        if (fold.target(index) < len(NUCLEUS_CLASSES)).sum() < _FEW_NUCLEUS_PIXELS:
            sparse.append(index)
            continue
        ranked.append((taken.setdefault(tissue, 0), index))
        taken[tissue] += 1
    return ([index for _, index in sorted(ranked, key=lambda pair: pair[0])] + sparse)[:count]


def draw_sheet(fold: Fold, indices: list[int], *, size: int, seed: int) -> Image.Image:
    """Draw a row for each patch: original, stain-normalized, augmented to ``size`` px, outlined in class colours.

    Raises InputError for a size that cannot be cut, or a patch that cannot be read.
    """
    augmentation = paper_augmentation(size)
    rows = [_row(fold, index, augmentation, seed) for index in indices]
    *lefts, right = _column_edges(size)
    sheet = Image.new("RGB", (right - _GAP + _MARGIN, _HEAD + len(rows) * (_CELL + _GAP) + _FOOT), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw_head(draw, fold, size, seed, lefts)
    for number, row in enumerate(rows):
        _draw_row(sheet, draw, row, lefts, _HEAD + number * (_CELL + _GAP))
    _draw_legend(draw, sheet.height - _FOOT + 14, fold.ignored is not None)
    return sheet


def require_picture(path: Path) -> None:
    """Raise InputError unless ``path``'s suffix names a picture format that `save_sheet` can write."""
    Image.init()
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise InputError(f"{path}: '{path.suffix}' names no picture format; end it in .png")


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Write the sheet whole or not at all, in the format its suffix names."""
    with replacing(path) as temporary:
        sheet.save(temporary)


def _row(fold: Fold, index: int, augmentation: Augmentation, seed: int) -> _Row:
    original, target = fold.image(index), fold.target(index)
    normalized, status = stain_normalized(original, "tile")
    augmented = []
    for version in range(_AUGMENTED):
        augmentation.seed((seed, version, index))
        augmented.append(augmentation(normalized, target))
    return _Row(
        index=index,
        tissue=fold.tissues[index],
        nuclei=len(fold.instance_classes(index)),
        status=status,
        original=original,
        normalized=normalized,
        target=target,
        augmented=augmented,
    )


def _draw_head(draw: ImageDraw.ImageDraw, fold: Fold, size: int, seed: int, lefts: list[int]) -> None:
    draw.text((_MARGIN, 30), f"What the network is taught: fold {fold.number}", _INK, _font(34))
    detail = f"{len(fold):,} patches of {TILE} px  ·  training windows of {size} px  ·  seed {seed}"
    draw.text((_MARGIN, 76), detail, _SOFT, _font(18))
    titles = ["Original", "Stain-normalized", *(f"Augmented {n + 1}" for n in range(_AUGMENTED))]
    for left, title in zip(lefts, titles, strict=True):
        draw.text((left, _HEAD - 12), title, _INK, _font(18), anchor="ls")


def _draw_row(sheet: Image.Image, draw: ImageDraw.ImageDraw, row: _Row, lefts: list[int], top: int) -> None:
    draw.text((_MARGIN, top + 4), row.tissue, _INK, _font(22))
    draw.text((_MARGIN, top + 36), f"patch {row.index}", _SOFT, _font(17))
    draw.text((_MARGIN, top + 60), f"{row.nuclei} nuclei", _SOFT, _font(17))
    if row.status is not StainStatus.OK:
        draw.text((_MARGIN, top + 92), f"not normalized:\n{row.status.value}", _AMBER, _font(17))
    cells = [_scaled(row.original), _outlined(row.normalized, row.target)]
    cells += [_outlined(image, target) for image, target in row.augmented]
    for left, cell in zip(lefts, cells, strict=True):
        sheet.paste(cell, (left, top + (_CELL - cell.height) // 2))


def _draw_legend(draw: ImageDraw.ImageDraw, top: int, with_unknown: bool) -> None:
    entries = [(c.name, c.color) for c in NUCLEUS_CLASSES]
    if with_unknown:
        entries.append(("Nucleus of unknown class: neither learned nor judged", _GREY))
    left = float(_MARGIN + _LABEL)
    for name, color in entries:
        draw.rounded_rectangle((left, top, left + 22, top + 22), 5, color, outline=_SOFT)
        draw.text((left + 32, top + 11), name, _INK, _font(18), anchor="lm")
        left += 32 + draw.textlength(name, _font(18)) + 36


def _outlined(image: _Bytes, target: _Bytes) -> Image.Image:
    """The picture with each class's outline on the inner rim of its nuclei, a pale line around to stand off."""
    picture = _scaled(image)
    colors = [(c.channel, c.color) for c in NUCLEUS_CLASSES] + [(UNKNOWN, _GREY)]
    present = set(np.unique(target).tolist())
    areas = [(_smooth(target == value, picture.size), color) for value, color in colors if value in present]
    for area, _ in areas:
        halo = ImageChops.subtract(area.filter(ImageFilter.MaxFilter(3)), area)
        picture.paste("white", mask=halo.point(lambda level: level * 0.6))
    for area, color in areas:
        picture.paste(color, mask=ImageChops.subtract(area, area.filter(ImageFilter.MinFilter(5))))
    return picture


def _smooth(area: npt.NDArray[np.bool_], size: tuple[int, int]) -> Image.Image:
    enlarged = Image.fromarray(area.astype(np.uint8) * 255).resize(size, Image.Resampling.BICUBIC)
    return enlarged.point(lambda level: 255 * (level > 127))


def _scaled(image: _Bytes) -> Image.Image:
    side = round(len(image) * _ZOOM)
    return Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)


def _column_edges(size: int) -> list[int]:
    """Left edge of each column, and where the next would begin; windows keep the patches' scale."""
    widths = [_CELL, _CELL, *[round(size * _ZOOM)] * _AUGMENTED]
    return list(accumulate((width + _GAP for width in widths), initial=_MARGIN + _LABEL))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
