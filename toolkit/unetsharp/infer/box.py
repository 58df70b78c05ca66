"""Rectangles of pixels."""

from typing import NamedTuple

__all__ = ["Box"]


class Box(NamedTuple):
    """Pixels from ``top`` and ``left`` up to, but not including, ``bottom`` and ``right``."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left

    def holds(self, x: float, y: float) -> bool:
        """Whether the point lies in it: on its upper and left edges, but not on the others."""
        return self.top <= y < self.bottom and self.left <= x < self.right

    def within(self, other: "Box") -> tuple[slice, slice]:
        """Rows and columns of it in an array of the pixels of ``other``."""
        return (
            slice(self.top - other.top, self.bottom - other.top),
            slice(self.left - other.left, self.right - other.left),
        )
