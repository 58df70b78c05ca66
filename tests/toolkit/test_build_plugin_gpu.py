"""The network that ships, its deep convolutions in one kernel, as an engine that TensorRT builds and runs on a GPU."""

import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx
import pytest

from support.bundles import QUIET
from support.runtime_tester import AS_SCANNED, tiles
from unetsharp.build.builder import Plan, Profile, Tuning, build_engine
from unetsharp.build.flavours import TENSORRT, load
from unetsharp.export.precision import to_fp16
from unetsharp.runtimes import open_runtime
from unetsharp_engines.cuda.device import open_device
from unetsharp_engines.errors import MissingCapabilityError
from unetsharp_engines.rewrites import rewrite

pytestmark = pytest.mark.gpu

EDGE = files("unetsharp.assets").joinpath("edge.onnx")
COUNT, SIDE = 3, 256

ELSEWHERE = """
import sys
from pathlib import Path
import numpy as np
from support.runtime_tester import AS_SCANNED, tiles
from unetsharp_engines.model_info import ModelInfo
from unetsharp_engines.runtimes.tensorrt import TensorRtRuntime

engine, out, side, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
info = ModelInfo(name="edge", encoder="none", width=1, train_size=side)
with TensorRtRuntime(engine.read_bytes(), info) as runtime:
    np.save(out, runtime.logits(tiles(count, side, side), AS_SCANNED))
assert "tensorrt.plugin" not in sys.modules, "the engine holds its kernel"
"""


@pytest.fixture(scope="module")
def expected() -> Iterator[np.ndarray]:
    pytest.importorskip("tensorrt", reason="TensorRT is not installed")
    try:
        open_device()
    except MissingCapabilityError as error:
        pytest.skip(str(error))
    with open_runtime(Path(str(EDGE)), "onnxruntime") as reference:
        yield reference.logits(tiles(COUNT, SIDE, SIDE), AS_SCANNED)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("fp16", 2e-2)])
def test_the_engine_is_the_network_where_nothing_else_knows_the_kernel(
    expected: np.ndarray, precision: str, tolerance: float, tmp_path: Path
) -> None:
    model, report = rewrite(onnx.ModelProto.FromString(EDGE.read_bytes()), ["deep-one-kernel"])
    assert len(report.passes[-1].sites) == 6
    model = to_fp16(model) if precision == "fp16" else model
    shape = (COUNT, 3, SIDE, SIDE)
    plan = Plan(
        name="edge",
        onnx=model.SerializeToString(),
        precision=precision,
        profile=Profile(min=(1, *shape[1:]), opt=shape, max=shape),
        targets=(),
        tuning=Tuning(level=1),
    )
    try:
        engine = build_engine(load(TENSORRT), plan, QUIET)
    except MissingCapabilityError as error:
        pytest.skip(str(error))
    (tmp_path / "edge.plan").write_bytes(engine)
    words = [tmp_path / "edge.plan", tmp_path / "logits.npy", SIDE, COUNT]
    subprocess.run([sys.executable, "-c", ELSEWHERE, *map(str, words)], cwd=Path(__file__).parents[1], check=True)
    seen = np.load(tmp_path / "logits.npy")
    assert np.abs(seen - expected).max() <= tolerance * max(1.0, float(np.abs(expected).max()))
    assert (seen.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.999
