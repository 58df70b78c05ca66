"""A bundle that TensorRT builds here, on a real GPU: it is run, and refused where it is not one's own or not whole."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support.bundles import QUIET
from support.runtime_tester import AS_SCANNED, tiles
from support.tiny_onnx import save_tiny_onnx
from support.user_folders import keep_in
from unetsharp import machine
from unetsharp.build.bundle import Bundle, open_bundle, write_bundle
from unetsharp.build.pipeline import BuildOptions, build_bundle
from unetsharp.inspection import look_at
from unetsharp.runtimes import open_runtime
from unetsharp_engines.cuda.device import open_device
from unetsharp_engines.errors import InputError, MissingCapabilityError

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    pytest.importorskip("tensorrt", reason="TensorRT is not installed")
    try:
        open_device()
    except MissingCapabilityError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("built")
    options = BuildOptions(runtime="tensorrt", precision="fp32", batch=(1, 2, 4))
    yield build_bundle(save_tiny_onnx(folder / "tiny.onnx"), folder / "bundle", options, QUIET)


def files_of(bundle: Bundle) -> dict[str, bytes]:
    return {entry.path: (bundle.root / entry.path).read_bytes() for entry in bundle.manifest.files()}


def labels(bundle: Path, runtime: str = "tensorrt", *, trust: bool = False) -> np.ndarray:
    with open_runtime(bundle, runtime, trust=trust) as opened:
        assert opened.name == "tensorrt"
        return opened.labels(tiles(7), AS_SCANNED)


def test_it_is_run_as_the_onnx_in_it(bundle: Bundle) -> None:
    with open_runtime(bundle.root, "onnxruntime") as reference:
        expected = reference.labels(tiles(7), AS_SCANNED)
    for runtime in ("tensorrt", "auto"):
        assert (labels(bundle.root, runtime) == expected).mean() > 0.999


def test_it_is_run_from_one_file(bundle: Bundle, tmp_path: Path) -> None:
    packed = write_bundle(tmp_path / "bundle.zip", bundle.manifest, files_of(bundle))
    np.testing.assert_array_equal(labels(packed.root), labels(bundle.root))


def test_anothers_is_run_on_ones_word_alone(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = labels(bundle.root)
    keep_in(tmp_path / "another user", monkeypatch)
    with pytest.raises(InputError, match="not built by you here"):
        labels(bundle.root)
    np.testing.assert_array_equal(labels(bundle.root, trust=True), expected)


def test_one_flipped_bit_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    (entry,) = bundle.manifest.engines
    content = bytearray(bundle.read_engine(entry))
    whole = write_bundle(tmp_path / "bundle", bundle.manifest, files_of(bundle)).root
    content[len(content) // 2] ^= 1
    (whole / entry.file.path).write_bytes(content)
    for runtime in ("tensorrt", "auto"):
        with pytest.raises(InputError, match="SHA-256"):
            labels(whole, runtime)
    assert open_bundle(bundle.root).is_trusted(entry)


def test_its_layers_are_told_wherever_it_is(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """In what types and shapes its TensorRT told them when it built it; loaded again, it tells the same."""
    (entry,) = bundle.manifest.engines
    loaded = look_at(bundle.root / entry.file.path, trust=True)["layers"]
    monkeypatch.setattr(machine, "gpus", lambda: ())
    layers = look_at(bundle.root)["layers"]
    assert loaded == layers
    assert {"convolution", "fp32"} <= {layer["kind"] for layer in layers} | {layer["precision"] for layer in layers}
    assert any(layer["shape"] == (1, 6, 64, 64) for layer in layers), "shapes are those of one image"
    assert sum(layer["written"] for layer in layers) >= 4 * 6 * 64**2
