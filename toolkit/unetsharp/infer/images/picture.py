"""What a picture is here, and how samples that are not 8-bit RGB become it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unetsharp_engines.errors import InputError

__all__ = ["MAX_PIXELS", "MPP_BOUNDS", "Header", "Picture", "check_size", "plausible_mpp", "to_rgb"]

MAX_PIXELS: int = 150_000_000
"""Largest picture, in pixels: about 12,000 × 12,000. Segmenting holds about 30 bytes a pixel, here 4.5 GB; what is
larger is a slide, and a header that claims more may be an attack (a "decompression bomb")."""

MPP_BOUNDS: tuple[float, float] = (0.05, 4.0)
"""Resolutions that are believed, in µm per pixel: from 200× oversampled to 2.5×. Outside lies a slip of the units."""

GREY_NOTE = "it is grey: the network was trained on H&E colours, and stains cannot be told apart without them"


@dataclass(frozen=True)
class Header:
    """What a file says before its pixels are decoded."""

    height: int
    width: int
    mpp: float | None = None
    """µm per pixel that the file states, None if it states none that can be believed."""


@dataclass(frozen=True)
class Picture:
    """A decoded picture."""

    pixels: npt.NDArray[np.uint8]
    """RGB, uint8 [H, W, 3], 0 to 255."""
    mpp: float | None = None
    """µm per pixel that the file states, None if it states none that can be believed."""
    notes: tuple[str, ...] = ()
    """What the user should know about how it was read, one sentence each."""


def check_size(height: int, width: int) -> None:
    """Raise InputError for a picture without pixels, or with more than `MAX_PIXELS`."""
    if height < 1 or width < 1:
        raise InputError(f"it has no pixels ({width} × {height})")
    if height * width > MAX_PIXELS:
        raise InputError(
            f"{width} × {height} pixels are more than one picture may have ({MAX_PIXELS // 10**6} million); cut it, "
            "or save it as a tiled TIFF, which is read by parts"
        )


def plausible_mpp(x: float, y: float) -> float | None:
    """The resolution that a file's ``x`` and ``y`` µm per pixel state, None where they cannot be believed.

    Pixels must be square within 1% and the value within `MPP_BOUNDS`: the 72 dpi that many programs write by
    default are 353 µm.
    """
    low, high = MPP_BOUNDS
    if not (low <= x <= high and abs(x - y) <= 0.01 * x):
        return None
    return float(x)


def to_rgb(samples: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]]:
    """RGB uint8 [H, W, 3] and notes, from uint8 [H, W] or [H, W, C], C of 1 to 4: grey, grey+alpha, RGB, RGB+alpha.

    Alpha is laid over white, the colour of an empty slide. Grey is repeated in all three channels, with a note.
    Raises InputError for other types and shapes and for sizes that `check_size` refuses.
    """
    if samples.dtype != np.uint8:
        raise InputError(f"its samples are {samples.dtype}; save it with 8 bits a channel (uint8, 0 to 255)")
    if samples.ndim == 2:
        samples = samples[:, :, None]
    if samples.ndim != 3 or samples.shape[2] not in (1, 2, 3, 4):
        raise InputError(f"its shape is {samples.shape}; one picture has shape (height, width, 3)")
    check_size(*samples.shape[:2])
    channels = samples.shape[2]
    color = _over_white(samples[..., :-1], samples[..., -1:]) if channels in (2, 4) else samples
    if color.shape[2] == 1:
        return np.repeat(color, 3, axis=2), (GREY_NOTE,)
    return np.ascontiguousarray(color), ()


def _over_white(color: npt.NDArray[np.uint8], alpha: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    a = alpha.astype(np.uint32)
    return ((color * a + 255 * (255 - a) + 127) // 255).astype(np.uint8)
