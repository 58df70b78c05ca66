"""Pictures from files: PNG, JPEG, TIFF and npy become uint8 RGB, or one clear line says why not; slides by regions."""

from unetsharp.infer.images.picture import MPP_BOUNDS, Header, Picture
from unetsharp.infer.images.reading import open_slide, probe, read_picture
from unetsharp.infer.images.slide import Slide

__all__ = ["MPP_BOUNDS", "Header", "Picture", "Slide", "open_slide", "probe", "read_picture"]
