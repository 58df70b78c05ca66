"""The Python API does what its documentation says."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import unetsharp
from support.painted import painted
from unetsharp.model import Model
from unetsharp_engines.errors import InputError
from unetsharp_engines.model_info import ModelInfo
from unetsharp_engines.runtimes.fake import FakeRuntime
from unetsharp_engines.stain import IDENTITY

SHIPPED = Path(unetsharp.__file__).parent / "assets" / "edge.onnx"


@pytest.fixture
def model() -> Model:
    return Model(FakeRuntime())


def test_segment_gives_classes_probabilities_and_nuclei(model: Model) -> None:
    picture = painted(100, 130, [(50, 50, 12, "Dead"), (100, 30, 9, "Inflammatory")])
    result = model.segment(picture, stain="none")
    assert result.classes.shape == (100, 130)
    assert result.classes.dtype == np.uint8
    assert result.probabilities.shape == (6, 100, 130)
    assert np.abs(result.probabilities.astype(float).sum(axis=0) - 1).max() < 2e-3
    assert result.counts == {"Neoplastic": 0, "Inflammatory": 1, "Connective": 0, "Dead": 1, "Epithelial": 0}
    assert [n.tissue_class.name for n in result.nuclei] == ["Inflammatory", "Dead"]
    assert set(np.unique(result.instances)) == {0, 1, 2}


@pytest.mark.parametrize("size", [(1, 1), (31, 17), (17, 31), (255, 257), (300, 5000), (97, 640)])
def test_any_size_is_taken(model: Model, size: tuple[int, int]) -> None:
    result = model.segment(painted(*size, [(size[1] / 2, size[0] / 2, 6, "Neoplastic")]), stain="none")
    assert result.classes.shape == size
    assert result.counts["Neoplastic"] == (size != (1, 1))


@pytest.mark.parametrize("mpp", [0.1, 0.2, 0.499, 0.75])
def test_results_are_in_the_pictures_own_pixels(model: Model, mpp: float) -> None:
    radius = 5 / mpp  # µm
    size = (round(50 / mpp), round(70 / mpp))
    picture = painted(*size, [(20 / mpp, 20 / mpp, radius, "Neoplastic"), (50 / mpp, 30 / mpp, radius, "Dead")])
    result = model.segment(picture, stain="none", mpp=mpp)
    assert result.classes.shape == size
    assert result.counts["Neoplastic"] == result.counts["Dead"] == 1
    for nucleus, x, y in zip(result.nuclei, (20, 50), (20, 30), strict=True):
        assert nucleus.centroid == pytest.approx((x / mpp, y / mpp), abs=0.5 / mpp * 0.25 + 0.2)
        assert nucleus.area_um2 == pytest.approx(np.pi * 25, rel=0.12)
    painted_pixels = np.count_nonzero((picture != FakeRuntime.COLORS["Background"]).all(axis=2))
    assert np.count_nonzero(result.classes) == pytest.approx(painted_pixels, rel=0.12)


def test_a_coarse_picture_is_told(model: Model) -> None:
    assert "0.499 µm/px" in model.segment(painted(40, 40, []), stain="none", mpp=0.499).warnings[0]
    assert not any("µm/px" in text for text in model.segment(painted(40, 40, []), stain="none").warnings)


@pytest.mark.parametrize(
    "image", [np.zeros((5, 5), np.uint8), np.zeros((5, 5, 4), np.uint8), np.zeros((5, 5, 3)), np.zeros((0, 5, 3), "u1")]
)
def test_other_arrays_are_refused(model: Model, image: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(InputError, match="uint8 RGB of shape"):
        model.segment(image)


def test_what_is_no_array_is_named(model: Model) -> None:
    for given, said in ((Image.new("RGB", (5, 5)), "is Image of shape"), ("slide.svs", "is str of shape")):
        with pytest.raises(InputError, match=f"{said}.*numpy array"):
            model.segment(given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mpp": 0.01}, "0.05 to 4"),
        ({"mpp": 25.0}, "0.05 to 4"),
        ({"mpp": float("nan")}, "0.05 to 4"),
        ({"overlap": 200}, "0 to 128"),
        ({"batch": 0}, "1 or more"),
        ({"stain": "slides"}, "slide, tile, none or fixed:FILE"),
        ({"stain": "fixed:"}, "slide, tile, none or fixed:FILE"),
        ({"stain": "fixed:/none/such.json"}, "cannot be read"),
    ],
)
def test_mistakes_are_told(model: Model, options: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        model.segment(painted(40, 40, []), **options)  # type: ignore[arg-type]


def stained(size: tuple[int, int] = (96, 96)) -> npt.NDArray[np.uint8]:
    """H&E mixed from two stains by Beer and Lambert's law, so that an estimate exists."""
    random = np.random.default_rng(11)
    amounts = random.gamma(2.0, 0.5, (*size, 2)) * (random.random((*size, 2)) < 0.8)
    density = amounts @ np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    return np.asarray((240 * np.exp(-density)).clip(0, 255), np.uint8)


def test_one_transform_a_picture_is_the_default(model: Model) -> None:
    stain = model.segment(stained()).stain
    assert stain.scope.value == "slide"
    assert stain.status is not None
    assert stain.status.value == "ok"
    assert stain.plan.transform != IDENTITY
    assert not stain.plan.per_tile


def test_a_tiles_own_transform_falls_back_to_the_pictures(model: Model) -> None:
    plan = model.segment(stained(), stain="tile").stain.plan
    assert plan.per_tile
    assert plan.transform == model.segment(stained()).stain.plan.transform


def test_a_fixed_transform_is_the_one_in_the_file(model: Model, tmp_path: Path) -> None:
    transform = model.segment(stained()).stain.plan.transform
    (tmp_path / "stain.json").write_text(transform.to_json())
    other = model.segment(painted(50, 50, []), stain=f"fixed:{tmp_path / 'stain.json'}")
    assert other.stain.plan.transform == transform
    (tmp_path / "stain.json").write_text("{}")
    with pytest.raises(InputError, match=r"stain\.json"):
        model.segment(stained(), stain=f"fixed:{tmp_path / 'stain.json'}")


def test_a_picture_without_stains_is_left_alone_with_the_reason(model: Model) -> None:
    result = model.segment(np.full((64, 64, 3), 245, np.uint8))
    assert result.stain.plan.transform == IDENTITY
    assert "FEW_PIXELS" in result.warnings[0]


def test_a_network_trained_without_normalization_gets_none() -> None:
    plain = Model(FakeRuntime(ModelInfo(name="plain", encoder="none", width=1, train_size=256, stain="none")))
    assert plain.segment(stained()).stain.plan.transform == IDENTITY
    assert plain.segment(stained()).warnings == ()
    assert "no effect" in plain.segment(stained(), stain="tile").warnings[0]


def test_batches_change_nothing(model: Model) -> None:
    picture = painted(600, 500, [(100 * i, 80 * i, 12, "Dead") for i in range(6)])
    one, many = model.segment(picture, batch=1), model.segment(picture, batch=7)
    assert np.array_equal(one.probabilities, many.probabilities)


def test_load_is_of_the_package_and_lazy() -> None:
    code = "import sys, unetsharp; assert 'numpy' not in sys.modules; print(unetsharp.load, unetsharp.Model)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = unetsharp.nothing


def test_the_shipped_network_segments(tmp_path: Path) -> None:
    with unetsharp.load() as shipped, Image.open(SHIPPED.with_name("crop.png")) as crop:
        result = shipped.segment(np.asarray(crop.convert("RGB"))[:300, :300], mpp=0.499)
    result.to_geojson(tmp_path / "x.geojson")
    assert result.counts
    assert not set(result.counts) & set(shipped.info.untaught)
