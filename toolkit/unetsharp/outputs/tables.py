"""Tables: one line a nucleus, one line a picture."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetsharp_engines.contract import NUCLEUS_CLASSES
from unetsharp_engines.files import replacing

if TYPE_CHECKING:
    from unetsharp.infer.segmentation import Found

__all__ = ["COUNT_COLUMNS", "NUCLEUS_COLUMNS", "write_counts", "write_nuclei"]

NUCLEUS_COLUMNS = (
    "id", "class", "probability", "centroid_x_px", "centroid_y_px", "centroid_x_um", "centroid_y_um", "area_um2",
    "on_border",
)  # fmt: skip
"""``id`` is the GeoJSON's; pixels are the picture's own; ``on_border`` is 1 where the picture's border may cut it."""

COUNT_COLUMNS = ("picture", *(c.name.lower() for c in NUCLEUS_CLASSES), "total", "area_mm2", "nuclei_per_mm2")
"""Empty for a class that the network was never taught: unknown, not zero."""


def write_nuclei(found: "Found", path: Path) -> None:
    """Write `NUCLEUS_COLUMNS` of every nucleus, UTF-8 CSV, in the order of the GeoJSON."""
    _write(path, NUCLEUS_COLUMNS, _nucleus_rows(found))


def write_counts(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write `COUNT_COLUMNS` of ``rows``, one a picture: ``picture``, ``counts`` by class name, ``area_mm2``."""
    _write(path, COUNT_COLUMNS, map(_count_row, rows))


def _write(path: Path, columns: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _nucleus_rows(found: "Found") -> Iterable[tuple[Any, ...]]:
    for nucleus in found.nuclei:
        x, y = nucleus.centroid
        places = (f"{x:.2f}", f"{y:.2f}", f"{x * found.mpp:.2f}", f"{y * found.mpp:.2f}")
        yield (
            found.id_of(nucleus),
            nucleus.tissue_class.name,
            f"{nucleus.probability:.4f}",
            *places,
            f"{nucleus.area_um2:.4f}",
            int(nucleus.on_border),
        )


def _count_row(row: Mapping[str, Any]) -> tuple[Any, ...]:
    counts = row["counts"]
    total = sum(counts.values())
    by_class = (counts.get(c.name, "") for c in NUCLEUS_CLASSES)
    return row["picture"], *by_class, total, f"{row['area_mm2']:.6f}", f"{total / row['area_mm2']:.1f}"
