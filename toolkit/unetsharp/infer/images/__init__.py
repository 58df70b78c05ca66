"""Pictures from files: PNG, JPEG, TIFF and npy become uint8 RGB, or one clear line says why not."""

from unetsharp.infer.images.picture import MPP_BOUNDS, Header, Picture
from unetsharp.infer.images.reading import probe, read_picture

__all__ = ["MPP_BOUNDS", "Header", "Picture", "probe", "read_picture"]
