"""What is written says what was found, in the form that others read."""

import csv
import json
import re
import uuid
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shapely.geometry import box, shape

from support.painted import Disc, painted
from unetsharp.infer.segmentation import Segmentation
from unetsharp.model import Model
from unetsharp.outputs import geojson, mask, overlay, tables
from unetsharp_engines.contract import CLASSES, class_named
from unetsharp_engines.model_info import ModelInfo
from unetsharp_engines.runtimes.fake import FakeRuntime

DISCS: list[Disc] = [
    (60, 50, 14, "Neoplastic"),
    (160, 60, 10, "Inflammatory"),
    (100, 150, 18, "Connective"),
    (124, 150, 18, "Connective"),
    (250, 180, 12, "Epithelial"),
    (0, 100, 15, "Neoplastic"),
]
SIZE = (220, 300)
INFO = ModelInfo(name="painter", encoder="none", width=1, train_size=256, untaught=("Dead",))


@pytest.fixture(scope="module")
def result() -> Segmentation:
    return Model(FakeRuntime(INFO)).segment(painted(*SIZE, DISCS), stain="none")


def test_geojson_has_the_members_qupath_reads(result: Segmentation, tmp_path: Path) -> None:
    geojson.write(result, tmp_path / "x.geojson")
    collection = json.loads((tmp_path / "x.geojson").read_text())
    assert collection["type"] == "FeatureCollection"
    assert len(collection["features"]) == len(result.nuclei) == len(DISCS)
    for feature, nucleus in zip(collection["features"], result.nuclei, strict=True):
        assert feature["type"] == "Feature"
        assert str(uuid.UUID(feature["id"])) == feature["id"]
        assert feature["geometry"]["type"] == "Polygon"
        properties = feature["properties"]
        assert properties["objectType"] == "detection"
        tissue_class = class_named(properties["classification"]["name"])
        assert properties["classification"]["color"] == list(tissue_class.color)
        assert properties["measurements"]["Area µm^2"] == pytest.approx(nucleus.area_um2, abs=1e-3)
        assert properties["measurements"]["Probability"] == pytest.approx(nucleus.probability, abs=1e-3)


def test_geojson_survives_any_platforms_encoding(result: Segmentation, tmp_path: Path) -> None:
    geojson.write(result, tmp_path / "x.geojson")
    assert (tmp_path / "x.geojson").read_bytes().isascii()


@pytest.mark.parametrize("mpp", [0.1, 0.25, 0.499, 1.3])
def test_geojson_outlines_are_valid_disjoint_and_inside(tmp_path: Path, mpp: float) -> None:
    picture = painted(*SIZE, DISCS)
    found = Model(FakeRuntime()).segment(picture, stain="none", mpp=mpp)
    assert found.nuclei
    found.to_geojson(tmp_path / "x.geojson")
    features = json.loads((tmp_path / "x.geojson").read_text())["features"]
    shapes = [shape(feature["geometry"]) for feature in features]
    for polygon, feature in zip(shapes, features, strict=True):
        assert polygon.is_valid
        assert polygon.exterior.is_ccw
        assert polygon.within(box(0, 0, SIZE[1], SIZE[0]))
        assert polygon.area * mpp**2 == pytest.approx(feature["properties"]["measurements"]["Area µm^2"], rel=0.05)
    overlaps = [a.intersection(b).area for i, a in enumerate(shapes) for b in shapes[:i]]
    assert max(overlaps) < 0.1


def test_no_nuclei_are_an_empty_collection(tmp_path: Path) -> None:
    nothing = Model(FakeRuntime()).segment(painted(40, 40, []), stain="none")
    nothing.to_geojson(tmp_path / "x.geojson")
    assert json.loads((tmp_path / "x.geojson").read_text()) == {"type": "FeatureCollection", "features": []}
    nothing.to_csv(tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text().splitlines() == [",".join(tables.NUCLEUS_COLUMNS)]
    assert nothing.overlay().width >= 40


def test_ids_are_stable_and_tell_pictures_and_nuclei_apart(result: Segmentation) -> None:
    ids = [result.id_of(n) for n in result.nuclei]
    again = Model(FakeRuntime(INFO)).segment(painted(*SIZE, DISCS), stain="none", batch=1)
    assert [again.id_of(n) for n in again.nuclei] == ids
    assert len(set(ids)) == len(DISCS)
    fewer = Model(FakeRuntime(INFO)).segment(painted(*SIZE, DISCS[1:]), stain="none")
    assert not {fewer.id_of(n) for n in fewer.nuclei} & set(ids)


def test_csv_has_one_line_a_nucleus(result: Segmentation, tmp_path: Path) -> None:
    tables.write_nuclei(result, tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [result.id_of(n) for n in result.nuclei]
    alone = [disc for disc in DISCS if disc[0] > 0 and disc[3] != "Connective"]
    expected = sorted((name, float(np.pi * (r * 0.25) ** 2)) for *_, r, name in alone)
    kept = [row for row in rows if row["on_border"] == "0" and row["class"] != "Connective"]
    inner = sorted((row["class"], float(row["area_um2"])) for row in kept)
    assert [name for name, _ in inner] == [name for name, _ in expected]
    assert [area for _, area in inner] == pytest.approx([area for _, area in expected], rel=0.07)
    for row in rows:
        assert float(row["centroid_x_um"]) == pytest.approx(0.25 * float(row["centroid_x_px"]), abs=0.01)
        assert 0 <= float(row["probability"]) <= 1


def test_counts_leave_unknown_classes_empty(result: Segmentation, tmp_path: Path) -> None:
    assert result.counts == {"Neoplastic": 2, "Inflammatory": 1, "Connective": 2, "Epithelial": 1}
    rows = [{"picture": "x", "counts": result.counts, "area_mm2": result.area_mm2}]
    tables.write_counts(rows, tmp_path / "counts.csv")
    header, line = csv.reader((tmp_path / "counts.csv").read_text().splitlines())
    cells = dict(zip(header, line, strict=True))
    assert cells["dead"] == ""
    assert cells["neoplastic"] == "2"
    assert cells["total"] == "6"
    assert float(cells["nuclei_per_mm2"]) == pytest.approx(6 / (220 * 300 * 0.0625e-6), rel=1e-4)


def test_mask_holds_labels_in_the_classes_colours(result: Segmentation, tmp_path: Path) -> None:
    mask.write(result, tmp_path / "x_mask.png")
    with Image.open(tmp_path / "x_mask.png") as image:
        assert image.mode == "P"
        labels = np.asarray(image)
        colours = np.asarray(image.convert("RGB"))
    assert np.array_equal(labels, result.classes)
    for x, y, _, name in DISCS:
        tissue_class = class_named(name)
        assert labels[int(y), int(x)] == tissue_class.label
        assert tuple(colours[int(y), int(x)]) == tissue_class.color
    assert labels[110, 200] == 0
    assert {c.label for c in CLASSES} >= set(np.unique(labels))


def test_overlay_draws_each_class_in_its_colour_and_keeps_the_picture(result: Segmentation) -> None:
    zoom = 5  # 300 pixels: the smallest whole factor that reaches 1400
    drawn = np.asarray(result.overlay())
    assert drawn.shape[1] == 300 * zoom
    picture = drawn[: 220 * zoom]
    for x, y, radius, name in DISCS:
        right = picture[int(y * zoom), int((x + radius) * zoom) - 6 : int((x + radius) * zoom) + 6]
        if name == "Connective":
            continue  # two that touch: the outline is where they meet
        assert (np.abs(right.astype(int) - class_named(name).color).max(axis=1) < 40).any(), name
        inside = picture[int(y * zoom), int(x * zoom) + 8].astype(int)
        assert np.abs(inside - FakeRuntime.COLORS[name]).max() <= 3
    legend = drawn[220 * zoom :]
    assert (legend == class_named("Neoplastic").color).all(axis=2).any()
    assert not (legend == class_named("Dead").color).all(axis=2).any(), "a class that was not taught has no colour"


def test_overlay_of_large_pictures_is_bounded() -> None:
    wide = Model(FakeRuntime()).segment(painted(40, 5000, [(2500, 20, 12, "Dead")]), stain="none").overlay()
    assert wide.width == overlay.LARGEST_SIDE
    tiny = Model(FakeRuntime()).segment(painted(17, 31, [(15, 8, 5, "Dead")]), stain="none").overlay()
    assert tiny.width >= 31 * overlay.LARGEST_ZOOM


@pytest.mark.parametrize(("mpp", "length"), [(0.25, 100), (0.5, 200), (4.0, 2000)])
def test_the_scale_bar_is_true(mpp: float, length: int) -> None:
    found_um, found_px = overlay._bar(mpp, 2000)
    assert found_um == length
    assert found_px == pytest.approx(length / mpp)


def test_nothing_half_written_is_left(result: Segmentation, tmp_path: Path) -> None:
    for write, name in ((geojson.write, "x.geojson"), (overlay.write, "x_overlay.png"), (mask.write, "x_mask.png")):
        write(result, tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.geojson", "x_mask.png", "x_overlay.png"]
    assert all(re.fullmatch(r"x[._]\w+(\.png)?", p.name) for p in tmp_path.iterdir())
