"""Between a picture's own pixels and the network's: the picture is resampled, results are mapped back."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from unetsharp.infer.images.picture import MAX_PIXELS, MPP_BOUNDS
from unetsharp_engines.contract import LABEL_OF_CHANNEL, MPP
from unetsharp_engines.errors import InputError

__all__ = ["Scale", "check_mpp"]


def check_mpp(mpp: float) -> float:
    """``mpp`` itself; InputError unless it is within `MPP_BOUNDS`."""
    low, high = MPP_BOUNDS
    if not low <= mpp <= high:
        raise InputError(
            f"{mpp} µm per pixel is outside {low} to {high}; a 40× scan has about 0.25, a 20× scan about 0.5"
        )
    return mpp


@dataclass(frozen=True)
class Scale:
    """A picture's pixel grid beside the network's, which has the same extent and `contract.MPP` µm a pixel.

    The network's grid has a whole number of pixels, so its pixel is `MPP` only to within half a pixel of the
    picture's side: every conversion uses the true ratio, each axis its own. Equal resolutions are the same grid.
    """

    height: int
    width: int
    mpp: float
    """µm per pixel of the picture."""

    @property
    def network_size(self) -> tuple[int, int]:
        """Height and width in network pixels, each at least 1. InputError if they are more than `MAX_PIXELS`."""
        height, width = (max(1, round(side * self.mpp / MPP)) for side in (self.height, self.width))
        if height * width > MAX_PIXELS:
            raise InputError(
                f"at {MPP} µm/px the picture has {width} × {height} pixels, more than one picture may have "
                f"({MAX_PIXELS // 10**6} million); cut it"
            )
        return height, width

    @property
    def picture_per_network(self) -> tuple[float, float]:
        """Picture pixels in a network pixel, (down, across)."""
        height, width = self.network_size
        return self.height / height, self.width / width

    @property
    def network_pixel_area(self) -> float:
        """µm² of one network pixel."""
        down, across = self.picture_per_network
        return down * across * self.mpp**2

    def to_network(self, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Resample RGB uint8 [H, W, 3] onto the network's grid: bicubic, antialiased where it shrinks (Pillow)."""
        if self.network_size == picture.shape[:2]:
            return picture
        height, width = self.network_size
        return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))

    def to_picture_labels(self, probabilities_CHW: npt.NDArray[np.float16]) -> npt.NDArray[np.uint8]:
        """Label image uint8 [H, W] on the picture's grid: probabilities are resampled, then the largest wins.

        Bilinear, antialiased where it shrinks; a label image cannot be resampled itself without jagged or lost
        outlines. Ties go to the lower channel.
        """
        best = np.full((self.height, self.width), -np.inf, np.float32)
        labels = np.zeros((self.height, self.width), np.uint8)
        for channel, plane in enumerate(probabilities_CHW):
            resampled = self._plane_to_picture(plane)
            labels[resampled > best] = LABEL_OF_CHANNEL[channel]
            np.maximum(best, resampled, out=best)
        return labels

    def _plane_to_picture(self, plane: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
        if plane.shape == (self.height, self.width):
            return plane.astype(np.float32)
        image = Image.fromarray(plane.astype(np.float32))
        return np.asarray(image.resize((self.width, self.height), Image.Resampling.BILINEAR))
