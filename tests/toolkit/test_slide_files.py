"""Slides are read by regions: what tifffile and OpenSlide give, or one clear line."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support.slide_files import NOISE, opened, save_slide
from unetsharp.infer.images import open_slide, read_picture
from unetsharp.infer.images.openslide_slide import OpenSlideSlide
from unetsharp_engines.errors import InputError, MissingCapabilityError

SHARED = Path(os.environ.get("UNETSHARP_SHARED", Path(__file__).parents[3] / "shared"))
SLIDE = SHARED / "data" / "slides" / "CMU-1-Small-Region.svs"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_region_is_that_part_of_the_picture(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    with opened(save_slide(tmp_path_factory.mktemp("slide") / "x.tif", NOISE)) as slide:
        assert slide.levels == ((230, 310), (115, 155))
        level = data.draw(st.integers(0, 1))
        rows, columns = slide.levels[level]
        top, left = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
        height, width = data.draw(st.integers(1, rows - top)), data.draw(st.integers(1, columns - left))
        whole = NOISE[:: level + 1, :: level + 1]
        assert np.array_equal(
            slide.read(top, left, height, width, level), whole[top : top + height, left : left + width]
        )


@pytest.mark.parametrize(
    "options", [{"compression": "zlib"}, {"bigtiff": True}, {"byteorder": ">"}, {"compression": "jpeg"}]
)
def test_encodings_of_slides(tmp_path: Path, options: dict[str, Any]) -> None:
    writer = {name: options.pop(name) for name in ("bigtiff", "byteorder") if name in options}
    with tifffile.TiffWriter(tmp_path / "x.tif", **writer) as file:
        file.write(NOISE, photometric="rgb", tile=(64, 64), **options)
    with opened(tmp_path / "x.tif") as slide:
        assert np.array_equal(slide.read(0, 0, 230, 310), read_picture(tmp_path / "x.tif").pixels)
        assert np.array_equal(slide.read(70, 60, 9, 200), read_picture(tmp_path / "x.tif").pixels[70:79, 60:260])


def test_the_overview_is_the_average_of_the_level_that_suits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smooth = np.asarray(Image.fromarray(NOISE).resize((800, 600), Image.Resampling.BICUBIC))
    with opened(save_slide(tmp_path / "x.tif", smooth)) as slide:
        assert slide.overview(4000).shape == smooth.shape
        assert np.array_equal(slide.overview(400), smooth[::2, ::2])
        small = slide.overview(100)
        assert small.shape == (75, 100, 3)
        blocks = smooth[::2, ::2].reshape(75, 4, 100, 4, 3).mean(axis=(1, 3))
        assert np.abs(small - blocks).max() <= 1
        monkeypatch.setattr("unetsharp.infer.images.slide._BLOCK_PX", 90)
        assert np.array_equal(slide.overview(100), small), "block by block"


def test_tiles_that_the_scanner_left_out_are_white(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        tiles = [np.zeros((64, 64, 3), np.uint8), None, None, None]
        file.write(
            iter(tiles), shape=(128, 128, 3), dtype=np.uint8, tile=(64, 64), photometric="rgb", compression="zlib"
        )
    with opened(tmp_path / "x.tif") as slide:
        region = slide.read(0, 0, 128, 128)
    assert not region[:64, :64].any()
    assert (region[:64, 64:] == 255).all()
    assert (region[64:] == 255).all()


@pytest.mark.parametrize("options", [{"tile": None}, {"tile": (64, 64), "planarconfig": "separate"}])
def test_other_tiffs_are_read_whole(tmp_path: Path, options: dict[str, Any]) -> None:
    samples = NOISE if options["tile"] is None else np.moveaxis(NOISE, -1, 0)
    tifffile.imwrite(tmp_path / "x.tif", samples, photometric="rgb", **options)
    assert open_slide(tmp_path / "x.tif") is None
    assert np.array_equal(read_picture(tmp_path / "x.tif").pixels, NOISE)


def test_a_damaged_slide_is_one_line(tmp_path: Path) -> None:
    path = save_slide(tmp_path / "x.tif", NOISE, compression="zlib")
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        start = file.pages.first.dataoffsets[7]
    content[start : start + 40] = bytes(40)
    path.write_bytes(bytes(content))
    with opened(path) as slide, pytest.raises(InputError, match=r"x\.tif: damaged") as caught:
        slide.read(0, 0, 230, 310)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("claimed", "said"),
    [
        ({"ImageWidth": 2**31}, "take 134217728 tiles, and it lists 20"),
        ({"ImageWidth": 2**22, "ImageLength": 2**22}, "and it lists 20"),
        ({"TileWidth": 1, "TileLength": 1}, "take 71300 tiles"),
        ({"TileWidth": 60_000, "TileLength": 60_000}, "60000 × 60000 pixels; save it in tiles of 256"),
        ({"TileWidth": 0}, "damaged"),
        ({"ImageWidth": 0}, "damaged"),
    ],
)
@pytest.mark.timeout(20)
def test_a_slide_that_claims_what_it_lacks_is_one_line(tmp_path: Path, claimed: dict[str, int], said: str) -> None:
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, NOISE, photometric="rgb", tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(path, mode="r+b") as file:
        for tag, value in claimed.items():
            file.pages.first.tags[tag].overwrite(value)
    with pytest.raises(InputError, match=said) as caught:
        read_picture(path) if open_slide(path) is None else None
    assert "\n" not in str(caught.value)


def test_a_level_of_other_samples_is_left_out(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        file.write(NOISE, subifds=1, photometric="rgb", tile=(64, 64))
        file.write(NOISE[::2, ::2].astype(np.uint16) * 9, subfiletype=1, photometric="rgb", tile=(64, 64))
    with opened(tmp_path / "x.tif") as slide:
        assert slide.levels == ((230, 310),)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_slide_with_any_damage_is_read_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = save_slide(tmp_path_factory.mktemp("slide") / "x.tif", NOISE[:70, :90], compression="lzw")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(4, 600))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    try:
        slide = open_slide(path)
        if slide is not None:
            with slide:
                assert slide.read(0, 0, min(slide.height, 70), min(slide.width, 90)).shape[2] == 3
    except InputError as error:
        assert "\n" not in str(error)


def test_what_tifffile_logs_is_not_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, NOISE, photometric="rgb", tile=(64, 64), compression="zlib")
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        entry = file.pages.first.tags["TileOffsets"].offset
    content[entry + 4 : entry + 8] = b"\xff\xff\xff\x7f"
    path.write_bytes(bytes(content))
    logging.getLogger("tifffile").setLevel(logging.NOTSET)
    with pytest.raises(InputError, match="damaged"):
        open_slide(path)
    assert not caplog.records


@pytest.mark.parametrize(("said", "mpp"), [("MPP = 0.4990", 0.499), ("MPP = 0,5", None), ("Date = 1", None)])
def test_the_resolution_of_an_aperio_slide(tmp_path: Path, said: str, mpp: float | None) -> None:
    about = f"Aperio Image Library v11.2.1 \r\n46000x32914|AppMag = 20|{said}|Left = 25.691574"
    tifffile.imwrite(tmp_path / "x.svs", NOISE, photometric="rgb", tile=(64, 64), description=about)
    with opened(tmp_path / "x.svs") as slide:
        assert slide.mpp == mpp


@pytest.mark.skipif(not SLIDE.is_file(), reason=f"{SLIDE} is not here")
def test_the_real_slide_is_what_openslide_reads() -> None:
    whole = tifffile.imread(SLIDE)
    with opened(SLIDE) as slide:
        assert (slide.height, slide.width, slide.mpp) == (*whole.shape[:2], 0.499)
        assert np.array_equal(slide.read(300, 1100, 1500, 1120), whole[300:1800, 1100:2220])
        pytest.importorskip("openslide")
        with OpenSlideSlide(SLIDE) as reference:
            assert (reference.levels, reference.mpp) == (slide.levels, slide.mpp)
            assert np.array_equal(reference.read(300, 1100, 1500, 1120), whole[300:1800, 1100:2220])


def test_openslide_reads_what_tifffile_reads(tmp_path: Path) -> None:
    pytest.importorskip("openslide")
    picture = np.repeat(np.repeat(NOISE, 2, 0), 2, 1)
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, picture, photometric="rgb", tile=(64, 64))
    with OpenSlideSlide(path) as slide, opened(path) as same:
        assert slide.levels == same.levels
        assert np.array_equal(slide.read(11, 70, 300, 400), same.read(11, 70, 300, 400))


class FakeOpenSlide:
    """A slide of 100 by 60 pixels of which 40 by 30 were scanned, as MRXS has them."""

    dimensions = (100, 60)
    level_downsamples = (1.0, 2.0)
    properties = {  # noqa: RUF012
        "openslide.bounds-x": "20", "openslide.bounds-y": "10", "openslide.bounds-width": "40",
        "openslide.bounds-height": "30", "openslide.mpp-x": "0.25", "openslide.mpp-y": "0.251",
    }  # fmt: skip

    def __init__(self, _path: Path) -> None:
        self.asked: list[Any] = []

    @classmethod
    def detect_format(cls, path: Path) -> str | None:
        return None if path.suffix == ".zvi" else "mirax"

    def read_region(self, corner: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        if corner == (21, 11):
            raise FakeModule.OpenSlideError("a tile is missing")
        return Image.new("RGBA", size, (corner[0], corner[1], level, 255 if level == 0 else 0))

    def close(self) -> None:
        pass


class FakeModule:
    class OpenSlideError(Exception):
        pass

    OpenSlide = FakeOpenSlide
    __library_version__ = "4.0.0"


def test_scanned_bounds_are_the_slide_as_in_qupath(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openslide", FakeModule)
    with opened(tmp_path / "x.mrxs") as slide:
        assert (slide.levels, slide.mpp) == (((30, 40), (15, 20)), 0.25)
        assert slide.read(3, 5, 4, 6).shape == (4, 6, 3)
        assert slide.read(3, 5, 4, 6)[0, 0].tolist() == [25, 13, 0]
        assert (slide.read(3, 5, 4, 6, 1) == 255).all(), "what was not scanned is white"
        with pytest.raises(InputError, match="a tile is missing"):
            slide.read(1, 1, 4, 6)
    with pytest.raises(InputError, match=r"OpenSlide 4\.0\.0"):
        open_slide(tmp_path / "x.zvi")


def test_a_scanners_format_without_openslide_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(MissingCapabilityError, match=r"pip install 'unetsharp\[wsi\]'"):
        open_slide(tmp_path / "x.ndpi")


def test_colours_that_tifffile_does_not_convert_are_left_to_openslide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "old.svs"
    tifffile.imwrite(path, NOISE, photometric="rgb", tile=(64, 64))
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages.first.tags["Compression"].overwrite(int(tifffile.COMPRESSION.APERIO_JP2000_YCBC))
    monkeypatch.setitem(sys.modules, "openslide", FakeModule)
    with opened(path) as slide:
        assert isinstance(slide, OpenSlideSlide)
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(MissingCapabilityError, match="wsi"):
        open_slide(path)
    with pytest.raises(InputError, match="only OpenSlide"):
        read_picture(path)


@pytest.mark.slow
@pytest.mark.skipif(not SLIDE.is_file(), reason=f"{SLIDE} is not there")
def test_a_real_slides_region(tmp_path: Path) -> None:
    region = tifffile.imread(SLIDE, key=0)[2000:2400, 1000:1400]
    Image.fromarray(region).save(tmp_path / "region.png")
    about = "Aperio Image Library v11.2.1|AppMag = 20|MPP = 0.4990"
    tifffile.imwrite(tmp_path / "slide.svs", region, tile=(240, 240), photometric="rgb", description=about)
    program = Path(sys.executable).with_name("unetsharp")
    for words in (["region.png", "--mpp", "0.499", "-o", "a"], ["slide.svs", "-o", "b"]):
        done = subprocess.run([program, "infer", *words], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    picture, slide = (json.loads((tmp_path / folder / "run.json").read_text("utf-8"))["pictures"][0] for folder in "ab")
    assert sum(picture["counts"].values()) > 20
    assert slide["counts"] == picture["counts"]
    assert (slide["mpp"], slide["mpp_from"]) == (0.499, "file")
    outlines = [
        [feature["geometry"] for feature in json.loads((tmp_path / name).read_text())["features"]]
        for name in ("a/region.geojson", "b/slide.geojson")
    ]
    assert outlines[0] == outlines[1]
