"""TIFF by tifffile: strips or tiles, any compression imagecodecs knows, one picture or the full level of a pyramid."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, TiffFile, TiffPageSeries

from unetsharp.infer.images.picture import MAX_PIXELS, Header, Picture, check_size, plausible_mpp, to_rgb
from unetsharp_engines.errors import InputError

__all__ = ["first_picture", "mpp_of", "open_tiff", "probe", "read", "size_of"]

_PHOTOMETRIC = (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR)
_UPRIGHT = 1


def probe(path: Path) -> Header:
    """Size of the first picture at full resolution, and its resolution in µm."""
    with _opened(path) as (file, series):
        check_size(*size_of(series))
        return Header(*size_of(series), mpp_of(file))


def read(path: Path) -> Picture:
    """Decode the first picture at full resolution. InputError for stacks, 16 bits, and colours other than grey, RGB."""
    with _opened(path) as (file, series):
        check_size(*size_of(series))
        if series.keyframe.compression == COMPRESSION.APERIO_JP2000_YCBC:
            raise InputError("its colours are stored as Aperio's YCbCr JPEG 2000, which only OpenSlide turns into RGB")
        samples = series.asarray()
        if series.axes == "SYX":
            samples = np.moveaxis(samples, 0, -1)
        if series.keyframe.photometric == PHOTOMETRIC.MINISWHITE:
            samples = np.invert(samples)
        samples, dropped = _without_unknown_samples(samples, series.keyframe.extrasamples)
        pixels, notes = to_rgb(samples)
        return Picture(pixels, mpp_of(file), notes + _others(file) + dropped)


def open_tiff(path: Path) -> TiffFile:
    """Open ``path`` by tifffile."""
    # tifffile logs oddities of tags on standard error; what matters of them is checked here or raises.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    return TiffFile(path)


def first_picture(file: TiffFile) -> TiffPageSeries:
    """The file's first picture; InputError if it is none that can be taken for 8-bit grey or RGB."""
    series = file.series[0]
    _check(series)
    return series


def size_of(series: TiffPageSeries) -> tuple[int, int]:
    """Height and width."""
    return series.shape[series.axes.index("Y")], series.shape[series.axes.index("X")]


def mpp_of(file: TiffFile) -> float | None:
    """µm per pixel that the file states: in its scanner's description, OME, ImageJ's or TIFF's own tags."""
    if file.is_svs:
        mpp = _svs_mpp(file.pages.first.description)
    elif file.is_ome:
        mpp = _ome_mpp(file.ome_metadata or "")
    elif file.is_imagej:
        mpp = _imagej_mpp(file)
    else:
        mpp = _inverse_mpp(*file.pages.first.get_resolution(unit="MICROMETER"))
    return mpp


@contextmanager
def _opened(path: Path) -> Iterator[tuple[TiffFile, TiffPageSeries]]:
    with open_tiff(path) as file:
        yield file, first_picture(file)


def _others(file: TiffFile) -> tuple[str, ...]:
    others = len(file.series) - 1
    if not others or file.is_svs:  # whose thumbnail, label and macro nobody would take for the slide
        return ()
    return (f"it holds {others} more picture(s), such as a thumbnail; the first was taken",)


def _check(series: TiffPageSeries) -> None:
    page = series.keyframe
    if series.axes not in ("YX", "YXS", "SYX"):
        raise InputError(
            f"it is a stack (axes {series.axes}, shape {series.shape}); save the one picture to segment as its own file"
        )
    if page.photometric not in _PHOTOMETRIC:
        raise InputError(f"its colours are stored as {PHOTOMETRIC(page.photometric).name}; save it as 8-bit RGB")
    orientation = page.tags.valueof("Orientation", _UPRIGHT)
    if orientation != _UPRIGHT:
        raise InputError(f"its orientation tag is {orientation}, which readers treat differently; save it upright (1)")
    if series.dtype != np.uint8:
        raise InputError(f"its samples are {series.dtype}; save it with 8 bits a channel (uint8, 0 to 255)")
    if page.is_tiled and page.tilewidth * page.tilelength * page.tiledepth > MAX_PIXELS:
        raise InputError(f"its tiles have {page.tilewidth} × {page.tilelength} pixels; save it in tiles of 256 or 512")


def _without_unknown_samples(
    samples: npt.NDArray[np.uint8], extra: tuple[int, ...]
) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]]:
    if samples.ndim == 2 or not extra or extra == (EXTRASAMPLE.UNASSALPHA,):
        return samples, ()
    color = samples[..., : samples.shape[2] - len(extra)]
    if extra == (EXTRASAMPLE.ASSOCALPHA,):  # colour is multiplied by alpha already: white shines through the rest
        return color + (255 - np.maximum(samples[..., -1:], color)), ()
    return color, (f"{len(extra)} channel(s) of unknown meaning were left out",)


def _svs_mpp(description: str) -> float | None:
    """Of Aperio's list of facts: ``…|AppMag = 20|MPP = 0.4990|…``."""
    stated = re.search(r"\|\s*MPP\s*=\s*(\d*\.?\d+)", description)
    return plausible_mpp(mpp := float(stated[1]), mpp) if stated else None


def _imagej_mpp(file: TiffFile) -> float | None:
    unit = str((file.imagej_metadata or {}).get("unit", "")).lower()
    if unit not in ("micron", "microns", "um", "µm", "\\u00b5m"):
        return None
    return _inverse_mpp(*file.pages.first.get_resolution())


def _inverse_mpp(x: float, y: float) -> float | None:
    return plausible_mpp(1 / x, 1 / y) if x > 0 and y > 0 else None


def _ome_mpp(xml: str) -> float | None:
    from xml.etree import ElementTree

    for element in ElementTree.fromstring(xml).iter():
        if element.tag.endswith("}Pixels"):
            micrometres = all(element.get(f"PhysicalSize{axis}Unit", "µm") == "µm" for axis in "XY")
            x, y = (float(element.get(f"PhysicalSize{axis}", "nan")) for axis in "XY")
            return plausible_mpp(x, y) if micrometres else None
    return None
