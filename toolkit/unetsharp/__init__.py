"""U-Net# nuclei segmentation in H&E histology: train, export, build engines, infer, and prove what each step cost."""

from unetsharp_engines import __version__

__all__ = ["__version__"]
