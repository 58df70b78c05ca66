"""Pictures are read as what they show, or refused in one line."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from unetsharp.infer.images import Header, probe, read_picture
from unetsharp.infer.images import picture as picture_module
from unetsharp.infer.inputs import list_inputs
from unetsharp_engines.errors import InputError

RGB = np.random.default_rng(1).integers(0, 256, (17, 31, 3), dtype=np.uint8)
GREY = RGB[..., 0]
ALPHA = np.linspace(0, 255, RGB[..., 0].size).astype(np.uint8).reshape(GREY.shape)
RGBA = np.dstack([RGB, ALPHA])
OVER_WHITE = np.rint(RGB * (ALPHA[..., None] / 255) + 255 - ALPHA[..., None].astype(float))


def save_tiff(path: Path, samples: npt.NDArray[np.generic], **options: object) -> Path:
    tifffile.imwrite(path, samples, **options)  # type: ignore[arg-type]
    return path


def test_png_is_read_as_it_is(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "x.png")
    picture = read_picture(tmp_path / "x.png")
    assert np.array_equal(picture.pixels, RGB)
    assert picture.pixels.dtype == np.uint8
    assert picture.mpp is None
    assert picture.notes == ()
    assert probe(tmp_path / "x.png") == Header(17, 31)


def test_the_name_does_not_decide_the_format(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "x.jpg", format="PNG")
    assert np.array_equal(read_picture(tmp_path / "x.jpg").pixels, RGB)


def test_jpeg_is_close(tmp_path: Path) -> None:
    smooth = np.asarray(Image.fromarray(RGB).resize((310, 170), Image.Resampling.BICUBIC))
    Image.fromarray(smooth).save(tmp_path / "x.jpg", quality=98, subsampling=0)
    error = np.abs(read_picture(tmp_path / "x.jpg").pixels.astype(int) - smooth)
    assert error.mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_told(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(tmp_path / "x.png", exif=exif)
    rows_first = {
        1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.swapaxes(0, 1),
        6: np.rot90(RGB, -1), 7: RGB[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(RGB),
    }  # fmt: skip
    picture = read_picture(tmp_path / "x.png")
    assert np.array_equal(picture.pixels, rows_first[orientation])
    assert bool(picture.notes) == (orientation != 1)
    header = probe(tmp_path / "x.png")
    assert (header.height, header.width) == picture.pixels.shape[:2]


def test_palette_png_gives_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(RGB).quantize(16)
    image.save(tmp_path / "x.png")
    assert np.array_equal(read_picture(tmp_path / "x.png").pixels, np.asarray(image.convert("RGB")))


def test_alpha_is_laid_over_white(tmp_path: Path) -> None:
    Image.fromarray(RGBA).save(tmp_path / "x.png")
    save_tiff(tmp_path / "x.tif", RGBA, photometric="rgb", extrasamples=["unassalpha"])
    np.save(tmp_path / "x.npy", RGBA)
    for name in ("x.png", "x.tif", "x.npy"):
        assert np.abs(read_picture(tmp_path / name).pixels - OVER_WHITE).max() <= 1, name


def test_premultiplied_alpha_and_unknown_channels(tmp_path: Path) -> None:
    premultiplied = np.rint(RGB * (ALPHA[..., None] / 255)).astype(np.uint8)
    samples = np.dstack([premultiplied, ALPHA])
    save_tiff(tmp_path / "a.tif", samples, photometric="rgb", extrasamples=["assocalpha"])
    assert np.abs(read_picture(tmp_path / "a.tif").pixels - OVER_WHITE).max() <= 1
    save_tiff(tmp_path / "u.tif", RGBA, photometric="rgb", extrasamples=["unspecified"])
    picture = read_picture(tmp_path / "u.tif")
    assert np.array_equal(picture.pixels, RGB)
    assert "unknown meaning" in picture.notes[0]


def test_grey_is_repeated_and_told(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "x.png")
    save_tiff(tmp_path / "black.tif", GREY, photometric="minisblack")
    save_tiff(tmp_path / "white.tif", 255 - GREY, photometric="miniswhite")
    np.save(tmp_path / "x.npy", GREY)
    for name in ("x.png", "black.tif", "white.tif", "x.npy"):
        picture = read_picture(tmp_path / name)
        assert np.array_equal(picture.pixels, np.dstack([GREY] * 3)), name
        assert "grey" in picture.notes[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "lzw"},
        {"compression": "zlib", "predictor": True},
        {"compression": "zstd"},
        {"tile": (16, 16), "compression": "lzw"},
        {"rowsperstrip": 3},
        {"bigtiff": True},
        {"byteorder": ">"},
    ],
)
def test_tiff_layouts_without_loss(tmp_path: Path, options: dict[str, object]) -> None:
    path = save_tiff(tmp_path / "x.tif", RGB, photometric="rgb", **options)
    assert np.array_equal(read_picture(path).pixels, RGB)
    assert probe(path) == Header(17, 31)


def test_tiff_planar_and_jpeg(tmp_path: Path) -> None:
    planar = save_tiff(tmp_path / "p.tif", np.moveaxis(RGB, -1, 0), photometric="rgb", planarconfig="separate")
    assert np.array_equal(read_picture(planar).pixels, RGB)
    smooth = np.asarray(Image.fromarray(RGB).resize((310, 170), Image.Resampling.BICUBIC))
    tiled = save_tiff(tmp_path / "j.tif", smooth, photometric="rgb", compression="jpeg", tile=(64, 64))
    Image.fromarray(smooth).save(tmp_path / "y.tif", compression="jpeg", quality=95)  # stored as YCbCr
    for path in (tiled, tmp_path / "y.tif"):
        assert np.abs(read_picture(path).pixels.astype(int) - smooth).mean() < 8, path


def test_tiff_pyramid_gives_its_full_level(tmp_path: Path) -> None:
    large = np.asarray(Image.fromarray(RGB).resize((310, 170)))
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        file.write(large, photometric="rgb", subifds=1)
        file.write(large[::2, ::2], photometric="rgb", subfiletype=1)
    assert np.array_equal(read_picture(tmp_path / "x.tif").pixels, large)


def test_tiff_with_a_thumbnail_gives_the_first_and_says_so(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        file.write(RGB, photometric="rgb")
        file.write(RGB[::3, ::3], photometric="rgb")
    picture = read_picture(tmp_path / "x.tif")
    assert np.array_equal(picture.pixels, RGB)
    assert "1 more picture" in picture.notes[0]


@pytest.mark.parametrize(
    ("options", "mpp"),
    [
        ({"resolution": (20040, 20040), "resolutionunit": "centimeter"}, 0.499),
        ({"resolution": (101600, 101600), "resolutionunit": "inch"}, 0.25),
        ({"resolution": (72, 72), "resolutionunit": "inch"}, None),
        ({"resolution": (20040, 40080), "resolutionunit": "centimeter"}, None),
        ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "um"}}, 0.25),
        ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "pixel"}}, None),
        ({"ome": True, "metadata": {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}}, 0.5),
        ({"ome": True, "metadata": {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "mm", "PhysicalSizeY": 0.5}}, None),
        ({"ome": True}, None),
    ],
)
def test_tiff_resolution_is_believed_where_it_can_be(
    tmp_path: Path, options: dict[str, object], mpp: float | None
) -> None:
    path = save_tiff(tmp_path / ("x.ome.tif" if "ome" in options else "x.tif"), RGB, photometric="rgb", **options)
    assert read_picture(path).mpp == (mpp if mpp is None else pytest.approx(mpp, rel=1e-4))
    assert probe(path).mpp == read_picture(path).mpp


def png_of_16_bits() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(12) for _ in range(2))
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def npy(array: npt.NDArray[np.generic], **options: bool) -> bytes:
    stream = BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def tiff(samples: npt.NDArray[np.generic], **options: object) -> bytes:
    stream = BytesIO()
    tifffile.imwrite(stream, samples, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def jpeg_of_cmyk() -> bytes:
    stream = BytesIO()
    Image.new("CMYK", (5, 5)).save(stream, format="JPEG")
    return stream.getvalue()


BAD = {
    "empty.png": (b"", "empty"),
    "text.png": (b"hello, I am text", "not a PNG"),
    "notes.txt": (b"hi", "not a PNG"),
    "slide.svs": (b"II*\0", "damaged"),
    "deep.png": (png_of_16_bits(), "8-bit"),
    "cmyk.jpg": (jpeg_of_cmyk(), "8-bit grey or RGB"),
    "deep.tif": (tiff(RGB.astype(np.uint16), photometric="rgb"), "uint16"),
    "float.tif": (tiff(RGB.astype(np.float32), photometric="rgb"), "float32"),
    "stack.tif": (tiff(np.stack([RGB] * 4), photometric="rgb"), "stack"),
    "cmyk.tif": (tiff(RGBA, photometric="separated"), "SEPARATED"),
    "turned.tif": (tiff(RGB, photometric="rgb", extratags=[(274, 3, 1, 6, False)]), "orientation"),
    "float.npy": (npy(RGB / 255.0), "float64"),
    "batch.npy": (npy(np.stack([RGB] * 4)), "(4, 17, 31, 3)"),
    "channels.npy": (npy(np.zeros((9, 9, 6), np.uint8)), "(9, 9, 6)"),
    "flat.npy": (npy(np.zeros(9, np.uint8)), "(9,)"),
    "nothing.npy": (npy(np.zeros((0, 5, 3), np.uint8)), "no pixels"),
    "pickle.npy": (npy(np.array([{"a": 1}], dtype=object), allow_pickle=True), "damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_each_bad_file_has_one_clear_line(tmp_path: Path, name: str) -> None:
    content, reason = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_picture(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert reason in line
    assert "\n" not in line


def encoded(kind: str) -> bytes:
    if kind == "npy":
        return npy(RGB)
    if kind == "tiff":
        return tiff(RGB, photometric="rgb", rowsperstrip=4)
    if kind == "lzw":
        return tiff(RGB, photometric="rgb", compression="lzw", tile=(16, 16))
    stream = BytesIO()
    Image.fromarray(RGB).save(stream, format=kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "lzw", "npy"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    content = encoded(kind)
    (tmp_path / "x").write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError):
        read_picture(tmp_path / "x")


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "lzw", "npy"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_a_picture_or_an_input_error(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    content = bytearray(encoded(kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content) - 1, 400)))] = data.draw(st.integers(0, 255))
    (tmp_path / "x").write_bytes(bytes(content[: data.draw(st.integers(1, len(content)))]))
    try:
        assert read_picture(tmp_path / "x").pixels.shape[2] == 3
        probe(tmp_path / "x")
    except InputError as error:
        assert "\n" not in str(error)


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path, _mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"x\.png: may not be read \(Permission denied\)"):
        read_picture(tmp_path / "x.png")


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_module, "MAX_PIXELS", 500)
    for kind in ("png", "jpeg", "tiff", "lzw", "npy"):
        (tmp_path / kind).write_bytes(encoded(kind))
        with pytest.raises(InputError, match="31 × 17"):
            read_picture(tmp_path / kind)
        with pytest.raises(InputError, match="31 × 17"):
            probe(tmp_path / kind)


def test_a_header_larger_than_pillows_own_limit_is_one_line(tmp_path: Path) -> None:
    content = bytearray(encoded("png"))
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    (tmp_path / "bomb.png").write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"bomb\.png"):
        read_picture(tmp_path / "bomb.png")


def test_inputs_are_files_and_the_visible_files_of_folders(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    for name in ("b.png", "a.png", "A.tif", ".hidden.png", "inner/c.png", "counts.png"):
        (folder / name).touch()
    (tmp_path / "a.png").touch()
    listed = list_inputs([tmp_path / "a.png", folder, folder / "b.png"])
    assert [file.path for file in listed] == [
        tmp_path / "a.png", folder / "A.tif", folder / "a.png", folder / "b.png", folder / "counts.png",
    ]  # fmt: skip
    assert [file.name for file in listed] == ["a", "A-2", "a-3", "b", "counts-2"]


def test_a_generated_name_never_takes_a_files_own(tmp_path: Path) -> None:
    for name in ("x.png", "x.tif", "x-2.png"):
        (tmp_path / name).touch()
    names = [file.name for file in list_inputs([tmp_path / "x.png", tmp_path / "x.tif", tmp_path / "x-2.png"])]
    assert len({name.lower() for name in names}) == 3


def test_a_missing_path_and_an_empty_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        list_inputs([tmp_path / "none.png"])
    with pytest.raises(InputError, match="holds no files"):
        list_inputs([tmp_path])
