"""Slides are segmented field by field, and give what a picture of them gives."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner, Result

import unetsharp.runtimes
from support.painted import painted
from support.real_tiles import dsb_tiles
from support.slide_files import NOISE, save_slide
from unetsharp.infer import fields
from unetsharp.infer.box import Box
from unetsharp.infer.images import Slide
from unetsharp.infer.nuclei import Nucleus
from unetsharp.infer.resolution import Scale
from unetsharp.infer.tiling import Grid
from unetsharp.infer.unfinished import Unfinished
from unetsharp.outputs import mask
from unetsharp_engines.contract import CLASSES
from unetsharp_engines.errors import InputError
from unetsharp_engines.model_info import ModelInfo
from unetsharp_engines.runtimes.fake import FakeRuntime
from unetsharp_engines.stain import StainPlan, StainTransform, estimate

INFO = ModelInfo(name="painter", encoder="none", width=1, train_size=256)


# ---- fields -------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    height=st.integers(1, 3000), width=st.integers(1, 3000), overlap=st.integers(0, 128), side=st.integers(300, 2000)
)
def test_fields_share_the_slide_and_see_the_slides_own_tiles(height: int, width: int, overlap: int, side: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fields, "FIELD", side)
        whole = Grid.over((height, width), tile=256, overlap=overlap)
        found = list(fields.fields_of(whole))
    owners = np.zeros((height, width), np.uint8)
    for field in found:
        owners[field.core.within(Box(0, 0, height, width))] += 1
        assert 0 <= field.seen.top <= field.core.top < field.core.bottom <= field.seen.bottom <= height
        tiles = {(y + field.seen.top, x + field.seen.left) for y, x in field.grid.positions}
        assert tiles <= set(whole.positions)
        around = field.core.top - fields.CONTEXT, field.core.bottom + fields.CONTEXT
        rows = {y for y in whole.rows.starts if y < around[1] and y + 256 > around[0]}
        assert rows == {y for y, _ in tiles}, "no tile that shows the core or its context is left out, and no other run"
    assert (owners == 1).all()


@given(mpp=st.sampled_from([0.11, 0.2201, 0.25, 0.499, 0.8]), data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_resampled_part_is_the_part_of_the_resampled(mpp: float, data: st.DataObject) -> None:
    scale = Scale(NOISE.shape[0], NOISE.shape[1], mpp)
    whole = scale.to_network(NOISE)
    height, width = scale.network_size
    assert whole.shape == (height, width, 3)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom, right = data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width))
    part = scale.part_to_network(lambda y, x, h, w: NOISE[y : y + h, x : x + w], Box(top, left, bottom, right))
    assert np.array_equal(part, whole[top:bottom, left:right])


@pytest.mark.parametrize("mpp", [0.11, 0.2201, 0.499, 0.8])
def test_resampling_in_blocks_is_pillows_in_one_go(mpp: float) -> None:
    smooth = Image.fromarray(NOISE).reduce(10).resize((310, 230), Image.Resampling.BICUBIC)
    scale = Scale(230, 310, mpp)
    height, width = scale.network_size
    once = np.asarray(smooth.resize((width, height), Image.Resampling.BICUBIC))
    error = np.abs(scale.to_network(np.asarray(smooth)).astype(int) - once)
    assert error.max() <= 3, "Pillow rounds and clips between rows and columns, in an order of its choice"
    assert error.mean() < 0.1


def test_parts_of_labels_are_the_labels_of_parts() -> None:
    scale = Scale(300, 410, 0.37)
    size = scale.network_size
    coarse = np.random.default_rng(3).random((6, 9, 9), np.float32)
    probabilities = np.stack(
        [np.asarray(Image.fromarray(p).resize(size[::-1], Image.Resampling.BICUBIC)) for p in coarse]
    )
    whole = scale.to_picture_labels(probabilities.astype(np.float16))
    joined = np.full((300, 410), 9, np.uint8)
    for core in (Box(0, 0, 200, 333), Box(0, 333, 200, size[1]), Box(200, 0, size[0], size[1])):
        seen = Box(
            max(0, core.top - 30), max(0, core.left - 30), min(size[0], core.bottom + 30), min(size[1], core.right + 30)
        )
        wanted = scale.picture_part(core)
        rows, columns = seen.within(Box(0, 0, *size))
        part = probabilities[:, rows, columns].astype(np.float16)
        joined[wanted.within(Box(0, 0, 300, 410))] = scale.to_picture_labels(part, seen=seen, wanted=wanted)
    assert np.mean(joined != whole) < 1e-3
    assert joined.max() < 6, "every pixel of the picture is in one part"


def test_what_is_stored_comes_back(tmp_path: Path) -> None:
    nuclei = [
        Nucleus(CLASSES[2], 0.7, np.array([[0, 0.5], [3, 0], [1, 2.25], [0, 0.5]]), (1.2, 0.7), 12.5, True),
        Nucleus(
            CLASSES[4], 0.9, np.array([[10, 10], [12, 10], [12, 13], [9, 12], [10, 10]], float), (11, 11), 4.0, False
        ),
    ]
    folder = tmp_path / "x.unfinished"
    kept = Unfinished(folder, fingerprint="a", classes_of=(20, 30), resume=True)
    kept.store(11, nuclei, np.full((5, 6), 3, np.uint8), Box(10, 20, 15, 26))
    kept.store(2, [], np.ones((1, 1), np.uint8), Box(0, 0, 1, 1))
    again = Unfinished(folder, fingerprint="a", classes_of=(20, 30), resume=True)
    assert [again.has(field) for field in (2, 3, 11)] == [True, False, True]
    (folder / "field-000003.npz").touch()
    assert not again.has(3), "as a computer that lost its power may leave it"
    (folder / "field-000003.npz").unlink()
    for one, other in zip(again.nuclei, nuclei, strict=True):
        assert (one.tissue_class, one.probability, one.centroid) == (
            other.tissue_class,
            other.probability,
            other.centroid,
        )
        assert (one.area_um2, one.on_border) == (other.area_um2, other.on_border)
        assert np.array_equal(one.polygon, other.polygon)
    assert again.classes is not None
    assert (again.classes.sum(), again.classes[12, 25]) == (3 * 30 + 1, 3)
    assert not list(Unfinished(folder, fingerprint="b", classes_of=(20, 30), resume=True).nuclei)
    Unfinished(folder, fingerprint="b", classes_of=(20, 30), resume=False).remove()
    assert not folder.exists()


def test_a_stop_while_it_is_removed_leaves_nothing_to_go_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "x.unfinished"
    kept = Unfinished(folder, fingerprint="a", classes_of=(20, 30), resume=True)
    kept.store(0, [], None, Box(0, 0, 20, 30))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", stopping_after(2, Path.unlink))
        kept.remove()
    again = Unfinished(folder, fingerprint="a", classes_of=(20, 30), resume=True)
    assert not again.has(0)
    again.store(0, [], np.ones((20, 30), np.uint8), Box(0, 0, 20, 30))


def stopping_after(calls: int, function: Callable[..., None]) -> Callable[..., None]:
    """``function``, but Ctrl-C comes with the call behind ``calls``."""
    left = iter(range(calls))

    def called(*arguments: Any, **options: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        function(*arguments, **options)

    return called


def test_what_a_killed_run_and_others_left_does_not_stop_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "x.unfinished"
    kept = Unfinished(folder, fingerprint="a", classes_of=None, resume=True)
    (folder / ".field-000003-abc.npz").touch()  # by a kill while it was written
    (folder / ".DS_Store").touch()  # as a Mac leaves it anywhere
    kept.remove()
    assert [path.name for path in folder.iterdir()] == [".DS_Store"]


def test_classes_that_the_disk_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"takes up to 1000000000\.0 GB.*--formats geojson,csv,overlay"):
        Unfinished(tmp_path / "x.unfinished", fingerprint="a", classes_of=(10**9, 10**9), resume=False)
    assert not (tmp_path / "x.unfinished").exists()
    kept = Unfinished(tmp_path / "y.unfinished", fingerprint="a", classes_of=None, resume=False)
    assert kept.classes is None
    kept.store(0, [], np.ones((1, 1), np.uint8), Box(0, 0, 1, 1))
    assert sorted(path.name for path in (tmp_path / "y.unfinished").iterdir()) == ["field-000000.npz", "fingerprint"]


# ---- the command --------------------------------------------------------------------------------------------------

Infer = Callable[..., Result]


class Counting(FakeRuntime):
    """Counts tiles; Ctrl-C comes with the call number ``interrupt``."""

    def __init__(self, interrupt: int | None = None) -> None:
        super().__init__(INFO)
        self.tiles = 0
        self.calls = 0
        self.interrupt = interrupt

    def _logits(self, tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan) -> npt.NDArray[np.float32]:
        self.calls += 1
        self.tiles += len(tiles_NHWC)
        if self.calls == self.interrupt:
            raise KeyboardInterrupt
        return super()._logits(tiles_NHWC, stain)


@pytest.fixture
def infer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Infer:
    """The command with a fake network, small fields, and no stain normalization."""
    from unetsharp.cli.app import app

    (tmp_path / "net.onnx").write_bytes(b"the file of the fake network")
    monkeypatch.setattr(fields, "FIELD", 600)

    def run(*arguments: object, runtime: FakeRuntime, out: str = "out") -> Result:
        monkeypatch.setattr(unetsharp.runtimes, "open_runtime", lambda _model, _name, **_options: runtime)
        words = ["infer", "--stain", "none", *arguments, "-m", tmp_path / "net.onnx", "-o", tmp_path / out]
        return CliRunner().invoke(app, [str(word) for word in words])

    return run


def full_of_nuclei(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Some 500 discs, many of them touching, with soft edges."""
    random = np.random.default_rng(8)
    names = [c.name for c in CLASSES if c.name != "Background"]
    discs = [
        (x, y, radius, names[i % 5])
        for i, (x, y, radius) in enumerate(random.uniform((0, 0, 4), (width, height, 12), (500, 3)).tolist())
    ]
    soft = Image.fromarray(painted(height, width, discs)).reduce(2).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(soft)


def nuclei_in(path: Path) -> set[str]:
    features = json.loads(path.read_text())["features"]
    found = {json.dumps([f["geometry"]["coordinates"], f["properties"]]) for f in features}
    assert len(found) == len(features)
    return found


@pytest.mark.parametrize("mpp", [0.25, 0.4])
def test_a_slide_gives_what_its_picture_gives(infer: Infer, tmp_path: Path, mpp: float) -> None:
    picture = full_of_nuclei(900, 1100)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    assert infer(tmp_path / "picture.png", "--mpp", mpp, runtime=Counting()).exit_code == 0
    save_slide(tmp_path / "slide.tif", picture, mpp=mpp)
    done = infer(tmp_path / "slide.tif", runtime=Counting(), out="slides")
    assert done.exit_code == 0, done.output
    expected = nuclei_in(tmp_path / "out" / "picture.geojson")
    assert len(expected) > 200
    assert nuclei_in(tmp_path / "slides" / "slide.geojson") == expected
    assert len((tmp_path / "slides" / "slide.csv").read_text("utf-8").splitlines()) == len(expected) + 1
    masks = [np.asarray(Image.open(tmp_path / name)) for name in ("out/picture_mask.png", "slides/slide_mask.png")]
    assert np.mean(masks[0] != masks[1]) < 1e-4
    assert sorted(path.name for path in (tmp_path / "slides").iterdir()) == [
        "counts.csv", "run.json", "slide.csv", "slide.geojson", "slide_mask.png", "slide_overlay.png",
    ]  # fmt: skip


def test_an_interrupted_slide_goes_on_where_it_was(infer: Infer, tmp_path: Path) -> None:
    path = save_slide(tmp_path / "slide.tif", full_of_nuclei(900, 1100), mpp=0.25)
    whole = Counting()
    assert infer(path, runtime=whole, out="whole").exit_code == 0
    done = infer(path, runtime=Counting(interrupt=whole.calls - 1))
    assert done.exit_code == 130
    assert "--resume" in done.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["counts.csv", "run.json", "slide.unfinished"]
    rest = Counting()
    assert infer(path, "--resume", runtime=rest).exit_code == 0
    assert 0 < rest.tiles < whole.tiles / 2
    assert not (tmp_path / "out" / "slide.unfinished").exists()
    for name in ("slide.csv", "slide.geojson", "slide_mask.png", "slide_overlay.png"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_what_was_unfinished_is_begun_anew_without_resume(infer: Infer, tmp_path: Path) -> None:
    path = save_slide(tmp_path / "slide.tif", full_of_nuclei(900, 1100), mpp=0.25)
    assert infer(path, "--formats", "csv", runtime=Counting(interrupt=5)).exit_code == 130
    whole = Counting()
    assert infer(path, "--formats", "csv", runtime=whole).exit_code == 0
    assert whole.tiles == Grid.over((900, 1100), tile=256).tiles + extra_tiles((900, 1100))


@pytest.mark.parametrize("other", ["device", "code"])
def test_what_another_device_or_other_code_began_is_begun_anew(
    infer: Infer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    path = save_slide(tmp_path / "slide.tif", full_of_nuclei(1300, 300), mpp=0.25)
    assert infer(path, "--formats", "csv", runtime=Counting(interrupt=3)).exit_code == 130
    assert list((tmp_path / "out" / "slide.unfinished").glob("field-*.npz"))
    elsewhere = Counting()
    if other == "device":
        elsewhere.device = "cuda"
    else:
        monkeypatch.setattr("unetsharp.infer.run.code_sha256", lambda: "ab" * 32)
    assert infer(path, "--formats", "csv", "--resume", runtime=elsewhere).exit_code == 0
    assert elsewhere.tiles == Grid.over((1300, 300), tile=256).tiles + extra_tiles((1300, 300))


def extra_tiles(size: tuple[int, int]) -> int:
    """Tiles that neighbouring fields both run."""
    whole = Grid.over(size, tile=256)
    return sum(field.grid.tiles for field in fields.fields_of(whole)) - whole.tiles


def test_the_network_is_not_asked_about_glass(infer: Infer, tmp_path: Path) -> None:
    picture = np.full((1500, 2000, 3), 243, np.uint8)
    picture[600:900, 1100:1500] = painted(300, 400, [(60, 70, 12, "Dead"), (300, 200, 12, "Neoplastic")])
    counting = Counting()
    assert infer(save_slide(tmp_path / "x.tif", picture, mpp=0.25), runtime=counting).exit_code == 0
    assert 0 < counting.tiles < Grid.over((1500, 2000), tile=256).tiles / 2
    found = json.loads((tmp_path / "out" / "x.geojson").read_text())["features"]
    assert sorted(f["properties"]["classification"]["name"] for f in found) == ["Dead", "Neoplastic"]


def test_stains_are_those_of_the_tissue_however_much_glass_there_is(infer: Infer, tmp_path: Path) -> None:
    tissue = np.concatenate([np.concatenate([dsb_tiles()[i] for i in (0, 1, 2)] * 2, axis=1)] * 4)
    picture = np.full((1600, 1600, 3), 243, np.uint8)
    picture[500 : 500 + len(tissue), 200 : 200 + tissue.shape[1]] = tissue
    path = save_slide(tmp_path / "x.tif", picture, mpp=0.25)
    assert infer(path, "--stain", "slide", "--formats", "csv", runtime=Counting()).exit_code == 0
    (told,) = json.loads((tmp_path / "out" / "run.json").read_text("utf-8"))["pictures"]
    assert told["stain"]["status"] == "ok"
    found = StainTransform(np.array(told["stain"]["matrix"]), np.array(told["stain"]["offset"]))
    error = np.abs(found.apply_levels(tissue) - estimate(tissue).transform.apply_levels(tissue))
    of_all = np.abs(estimate(picture).transform.apply_levels(tissue) - estimate(tissue).transform.apply_levels(tissue))
    assert error.mean() < 4
    assert error.mean() < of_all.mean() / 3


def test_memory_is_bounded_by_fields(infer: Infer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    original = Slide.read

    def watched(self: Slide, top: int, left: int, height: int, width: int, level: int = 0) -> npt.NDArray[np.uint8]:
        asked.append(height * width)
        return original(self, top, left, height, width, level)

    path = save_slide(tmp_path / "x.tif", np.full((3000, 3600, 3), 243, np.uint8), mpp=0.25, compression="zlib")
    monkeypatch.setattr(Slide, "read", watched)
    monkeypatch.setattr("unetsharp.infer.images.slide._BLOCK_PX", 300)
    assert infer(path, "--formats", "csv", runtime=Counting()).exit_code == 0
    assert len(asked) > 50
    assert max(asked) < (600 + 2 * 256) ** 2


def test_a_large_slides_mask_is_a_tiled_tiff(infer: Infer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask, "MAX_PIXELS", 500_000)
    picture = full_of_nuclei(900, 1100)
    infer(save_slide(tmp_path / "x.tif", picture, mpp=0.25), "--formats", "mask", runtime=Counting())
    with tifffile.TiffFile(tmp_path / "out" / "x_mask.tif") as file:
        page = file.pages.first
        labels = page.asarray()
        assert page.is_tiled
        assert page.get_resolution(unit="MICROMETER") == pytest.approx((4, 4))
        colors = np.asarray(page.colormap)[:, :6].T // 257
    assert [tuple(color) for color in colors.tolist()] == [c.color for c in sorted(CLASSES, key=lambda c: c.label)]
    Image.fromarray(picture).save(tmp_path / "y.png")
    monkeypatch.setattr(mask, "MAX_PIXELS", 10**9)
    infer(tmp_path / "y.png", "--mpp", 0.25, "--formats", "mask", runtime=Counting())
    assert np.array_equal(labels, np.asarray(Image.open(tmp_path / "out" / "y_mask.png")))


def test_a_slide_that_needs_openslide_ends_with_3_and_the_rest_is_done(
    infer: Infer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openslide", None)
    (tmp_path / "x.mrxs").write_bytes(b"mirax")
    done = infer(tmp_path / "x.mrxs", runtime=Counting())
    assert (done.exit_code, "unetsharp[wsi]" in done.stderr, "Traceback" in done.output) == (3, True, False)
    Image.fromarray(full_of_nuclei(100, 100)).save(tmp_path / "y.png")
    (tmp_path / "z.png").write_bytes(b"")
    done = infer(tmp_path / "x.mrxs", tmp_path / "y.png", tmp_path / "z.png", runtime=Counting())
    assert done.exit_code == 2
    assert (tmp_path / "out" / "y.geojson").is_file()
