"""Nuclei as a GeoJSON FeatureCollection that QuPath 0.4 and later opens (File > Import objects, or drag and drop)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unetsharp_engines.files import replacing

if TYPE_CHECKING:
    from unetsharp.infer.nuclei import Nucleus
    from unetsharp.infer.segmentation import Found

__all__ = ["write"]

_DECIMALS = 3
"""Of a pixel, for coordinates. Outlines turn at least a quarter of a network pixel apart, so they stay simple."""


def write(found: "Found", path: Path) -> None:
    """Write one Feature a nucleus, each on a line of its own, in pixels of the picture.

    QuPath's members: a UUID ``id``; ``objectType`` detection; ``classification`` with name and RGB colour;
    ``measurements`` by name, areas as QuPath calls its own ("Area µm^2"). The file is pure ASCII, since QuPath reads it
    in the platform's encoding, and "µ" would not survive that on Windows.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="ascii", newline="\n") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        separator = "\n"
        for feature in _features(found):
            file.write(separator + json.dumps(feature))
            separator = ",\n"
        file.write("\n]}\n")


def _features(found: "Found") -> Iterator[dict[str, Any]]:
    for nucleus in found.nuclei:
        yield {
            "type": "Feature",
            "id": found.id_of(nucleus),
            "geometry": {"type": "Polygon", "coordinates": [np.round(nucleus.polygon, _DECIMALS).tolist()]},
            "properties": _properties(nucleus),
        }


def _properties(nucleus: "Nucleus") -> dict[str, Any]:
    return {
        "objectType": "detection",
        "classification": {"name": nucleus.tissue_class.name, "color": list(nucleus.tissue_class.color)},
        "measurements": {
            "Area µm^2": round(nucleus.area_um2, 4),
            "Probability": round(nucleus.probability, 4),
        },
    }
