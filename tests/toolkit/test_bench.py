"""The bench: what it measures adds up, contestants take turns, mistakes are told before anything is measured."""

import dataclasses
import hashlib
import json
import sys
import time
import xml.etree.ElementTree as ElementTree
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import helper
from typer.testing import CliRunner, Result

from support.bundles import engine_entry, manifest_of
from support.fake_cuda import Gpu
from support.fake_tensorrt import install
from support.tiny_onnx import INFO, save_tiny_onnx, tiny_onnx
from unetsharp import machine
from unetsharp.bench import measure, roofline
from unetsharp.bench.contestants import Contestant, peers_of
from unetsharp.bench.energy import Energy, metered
from unetsharp.bench.report import chart
from unetsharp.bench.roofline import Peak, cost_of, shares
from unetsharp.bench.run import BenchSettings, bench, parse_batches, parse_names
from unetsharp.bench.tiles import real_tiles, write_pictures
from unetsharp.build.bundle import file_entry, write_bundle
from unetsharp.cli.app import app
from unetsharp.cli.output import Output, Verbosity
from unetsharp_engines.cuda import device
from unetsharp_engines.errors import InputError, MissingCapabilityError
from unetsharp_engines.model_info import METADATA_KEY
from unetsharp_engines.runtimes.fake import FakeRuntime
from unetsharp_engines.stain import IDENTITY, StainPlan

PLAIN = StainPlan(IDENTITY)
QUIET = Output(verbosity=Verbosity.QUIET)


class SlowRuntime(FakeRuntime):
    """Takes a known time for each tile, and keeps who was asked for how many."""

    def __init__(self, name: str, seconds_per_tile: float, asked: list[tuple[str, int]]) -> None:
        super().__init__()
        self.name = name
        self._seconds = seconds_per_tile
        self._asked = asked

    def _labels(self, tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan) -> npt.NDArray[np.uint8]:
        self._asked.append((self.name, len(tiles_NHWC)))
        time.sleep(self._seconds * len(tiles_NHWC))
        return np.zeros(tiles_NHWC.shape[:3], np.uint8)


WEIGHTS = (2).to_bytes(8, "little") + b"{}"
"""A safetensors file without a tensor."""

SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


def weights_file(path: Path) -> Path:
    path.write_bytes(WEIGHTS)
    return path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few and short turns, and small matrices."""
    monkeypatch.setattr(measure, "TURNS", 2)
    monkeypatch.setattr(measure, "TURN_S", 0.02)
    monkeypatch.setattr(measure, "SINGLE_S", 0.1)
    monkeypatch.setattr(roofline, "_SIDE", 128)
    monkeypatch.setattr("unetsharp.bench.run.FILES", 8)


class TestMeasures:
    def test_throughput_is_tiles_by_time(self, quick: None) -> None:
        asked: list[tuple[str, int]] = []
        slow, fast = (
            Contestant(name="of one name", runtimes={4: SlowRuntime(name, seconds, asked)})
            for name, seconds in (("slow", 0.004), ("fast", 0.002))
        )
        turns = []
        slower, faster = measure.throughput([slow, fast], 4, real_tiles(4, 64), PLAIN, lambda: turns.append(1))
        # Sleeping never takes less than it was asked to.
        assert 100 < slower["tiles_per_s"] <= 250
        assert 200 < faster["tiles_per_s"] <= 500
        assert len(turns) == 4
        assert {count for _, count in asked} == {4}
        timed = [name for name, _ in asked[-8:]]
        assert timed.index("fast") > timed.index("slow"), "they take turns"

    def test_latency_is_of_one_tile(self, quick: None) -> None:
        asked: list[tuple[str, int]] = []
        found = measure.latency(SlowRuntime("one", 0.005, asked), real_tiles(3, 64), PLAIN)
        assert {count for _, count in asked} == {1}
        assert 0.005 <= found["p50"] <= found["p99"] < 0.1
        assert found["calls"] >= 5

    def test_stages_of_the_cpu(self, quick: None) -> None:
        seconds = measure.stage_seconds(FakeRuntime(), real_tiles(2, 64), StainPlan(IDENTITY, per_tile=True))
        assert list(seconds) == ["stain", "network", "finish"]
        assert all(value > 0 for value in seconds.values())

    def test_files_are_read_in_order(self, quick: None, tmp_path: Path) -> None:
        tiles = real_tiles(5, 64)
        seen: list[npt.NDArray[np.uint8]] = []

        class Keeping(FakeRuntime):
            def _labels(self, tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan) -> npt.NDArray[np.uint8]:
                seen.append(tiles_NHWC)
                return np.zeros(tiles_NHWC.shape[:3], np.uint8)

        assert measure.from_files(Keeping(), write_pictures(tiles, tmp_path), 2, PLAIN) > 0
        np.testing.assert_array_equal(np.concatenate(seen), tiles[:4])

    @pytest.mark.parametrize("side", [64, 256, 384])
    def test_tiles_differ_and_are_real(self, side: int) -> None:
        tiles = real_tiles(16, side)
        assert tiles.shape == (16, side, side, 3)
        assert len({tile.tobytes() for tile in tiles[:8]}) == 8
        assert 20 < tiles.std() < 100


def fake_driver() -> SimpleNamespace:
    """libcuda as `machine.pci_bus_id` calls it."""

    def tell(text: Any, length: int, device: Any) -> int:
        text.value = b"0000:83:00.0"
        return 0

    return SimpleNamespace(cuInit=lambda flags: 0, cuDeviceGet=lambda device, index: index, cuDeviceGetPCIBusId=tell)


class TestEnergy:
    def test_a_cpus_is_not_read(self) -> None:
        with metered("cpu") as energy:
            pass
        assert energy.joules is None
        assert "NVIDIA" in energy.why_not

    def test_the_counter_is_that_of_the_gpu_in_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """NVML counts every GPU, CUDA those that this process may use, in another order."""
        counters = {"0000:04:00.0": iter([0, 0, 0]), "0000:83:00.0": iter([1_000, 5_000, 12_500])}
        nvml = SimpleNamespace(
            NVMLError=OSError,
            nvmlInit=lambda: None,
            nvmlDeviceGetHandleByPciBusId=counters.__getitem__,
            nvmlDeviceGetTotalEnergyConsumption=next,
        )
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        monkeypatch.setattr(machine, "_driver", fake_driver)
        with metered("a GPU") as energy:
            pass
        assert energy.joules == 7.5  # millijoules, from the second reading on

    def test_without_a_driver_no_gpu_is_guessed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace())
        monkeypatch.setattr(machine, "_driver", lambda: None)
        with metered("a GPU") as energy:
            pass
        assert energy.joules is None
        assert "which GPU" in energy.why_not

    def test_joules_are_those_of_all_turns(self, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
        """The counter moves in steps that are long beside one turn."""
        read = iter([Energy(joules=6.0), Energy(joules=2.0)])
        monkeypatch.setattr(measure, "metered", lambda _: nullcontext(next(read)))
        monkeypatch.setattr(measure, "TURN_S", 0.0)
        (row,) = measure.throughput(
            [Contestant(name="it", runtimes={4: FakeRuntime()})], 4, real_tiles(4, 64), PLAIN, lambda: None
        )
        assert row["joules_per_tile"] == (6.0 + 2.0) / (2 * 2 * 4)  # two turns of two batches

    def test_without_nvml_it_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", None)
        with metered("a GPU") as energy:
            pass
        assert energy.joules is None
        assert "pip install nvidia-ml-py" in energy.why_not


class TestRoofline:
    def test_shares_by_hand(self) -> None:
        peak = Peak(macs=1e12, bytes=1e11, source="")
        assert shares(50.0, 10_000_000_000, 1_000_000_000, peak) == {"compute": 0.5, "traffic": 0.5}
        assert shares(1.0, 1, 1, Peak(macs=None, bytes=None, source="")) == {"compute": None, "traffic": None}

    def test_the_cost_is_that_of_the_convolutions(self, tmp_path: Path) -> None:
        macs, moved = cost_of(save_tiny_onnx(tmp_path / "tiny.onnx").read_bytes())
        stem, head = 4 * 32 * 32 * 27, 6 * 64 * 64 * 36  # a 64² input; outputs · inputs · taps
        assert macs == stem + head
        assert moved > 4 * 64 * 64 * (3 + 6)

    def test_a_cpus_peak_is_measured(self, quick: None) -> None:
        peak = roofline.peak_of("cpu")
        assert peak.macs is not None and 1e8 < peak.macs < 1e14
        assert peak.bytes is not None and 1e8 < peak.bytes < 1e13

    def test_a_gpu_that_cannot_be_asked_has_no_peak(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def lacking() -> None:
            raise MissingCapabilityError("pycuda is missing")

        monkeypatch.setattr(device, "open_device", lacking)
        assert roofline.peak_of("a GPU") == Peak(macs=None, bytes=None, source="pycuda is missing")

    def test_an_h100s_data_sheet(self, monkeypatch: pytest.MonkeyPatch) -> None:
        install(Gpu(), monkeypatch, most=4)
        peak = roofline.peak_of("a GPU made of numpy")
        device._opened.cache_clear()
        assert peak.macs == pytest.approx(989e12 / 2, rel=0.01)
        assert peak.bytes == pytest.approx(3.35e12, rel=0.01)


class TestOnAGpu:
    """With a GPU made of numpy, and a bundle whose engine it runs."""

    def test_stages_are_the_gpus_and_the_peak_its_data_sheets(
        self, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gpu = install(Gpu(), monkeypatch, most=4)
        here = machine.Gpu(name="a GPU made of numpy", target="sm90", memory_bytes=1 << 30)
        monkeypatch.setattr(machine, "gpus", lambda: (here,))
        monkeypatch.setitem(sys.modules, "pynvml", None)
        onnx = save_tiny_onnx(tmp_path / "m.onnx")
        bundle = foreign_bundle(tmp_path / "b", onnx.read_bytes())
        settings = BenchSettings(models=(bundle,), against=("onnxruntime",), batches=(2, 8), trust=True)
        engine, peer = bench(settings, QUIET)["contestants"]
        device._opened.cache_clear()
        assert (engine["name"], peer["name"]) == ("b on tensorrt", "onnxruntime")
        assert set(engine["batches"]["2"]["stage_s"]) == {"copy in", "stain", "network", "finish", "copy out"}
        assert "stage_s" not in engine["batches"]["8"], "the engine takes 4 at once"
        assert engine["roofline"]["peak_macs_per_s"] == pytest.approx(989e12 / 2, rel=0.01)
        assert "nvidia-ml-py" in engine["energy"]
        assert "stage_s" not in peer["batches"]["2"]
        assert gpu.blocks == {}, "all is given back"


def foreign_bundle(root: Path, onnx: bytes) -> Path:
    """A bundle with ``onnx`` and an unsigned engine for the GPU made of numpy."""
    content = b"ftrt taps half"
    entry = engine_entry(content, runtime="tensorrt", version="11.4.0.106", targets=("sm90",))
    manifest = dataclasses.replace(manifest_of(entry), onnx=file_entry("model.onnx", onnx))
    return write_bundle(root, manifest, {"model.onnx": onnx, entry.file.path: content}).root


class TestSettings:
    def test_batches(self) -> None:
        assert parse_batches("8, 1,8") == (1, 8)
        for wrong in ("", "0", "a", "1,,2", "-1"):
            with pytest.raises(InputError, match="--batch"):
                parse_batches(wrong)

    def test_names(self) -> None:
        assert parse_names(" torch, torchstain,torch,") == ("torch", "torchstain")
        assert parse_names(None) == parse_names("") == ()

    def test_what_nothing_can_be_done_with_is_refused_before_anything_is_loaded(self) -> None:
        with pytest.raises(InputError, match="--against openvino: wanted some of torch, "):
            BenchSettings(against=("torch", "openvino"))
        with pytest.raises(InputError, match="--weights w: serves PyTorch's peers alone; add --against torch"):
            BenchSettings(against=("onnxruntime",), weights=Path("w"))

    def test_without_weights_pytorch_is_no_peer(self) -> None:
        subject = Contestant(name="it", runtimes={1: FakeRuntime()})
        with ExitStack() as closing, pytest.raises(InputError, match="name those of fake by --weights"):
            peers_of(subject, None, ["torch"], (1,), weights=None, closing=closing)

    @pytest.mark.parametrize(
        ("made_of", "says"),
        [("ab" * 32, "was made of abababababab…"), ("", "was made of weights that it does not name")],
    )
    def test_other_weights_are_no_peer(self, tmp_path: Path, made_of: str, says: str) -> None:
        subject = Contestant(name="it", runtimes={1: FakeRuntime(dataclasses.replace(INFO, weights_sha256=made_of))})
        weights = weights_file(tmp_path / "w.safetensors")
        with ExitStack() as closing, pytest.raises(InputError, match=rf"--weights .*SHA-256 {SHA256[:12]}….*{says}"):
            peers_of(subject, None, ["torch"], (1,), weights=weights, closing=closing)

    def test_an_onnx_is_no_weights(self, tmp_path: Path) -> None:
        subject = Contestant(name="it", runtimes={1: FakeRuntime()})
        onnx = save_tiny_onnx(tmp_path / "m.onnx")
        with ExitStack() as closing, pytest.raises(InputError, match=r"--weights .*m\.onnx: an ONNX; give the weights"):
            peers_of(subject, None, ["torch"], (1,), weights=onnx, closing=closing)

    def test_a_peer_is_made_for_one_tile_too(
        self, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is made for a batch takes as long for one tile, which is no latency."""
        made, asked = [], []

        class Chain(FakeRuntime):
            def __init__(self, _weights: Path, *, name: str, batch: int) -> None:
                super().__init__()
                self._made_for = batch
                made.append(batch)

            def _labels(self, tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan) -> npt.NDArray[np.uint8]:
                asked.append((len(tiles_NHWC), self._made_for))
                return super()._labels(tiles_NHWC, stain)

        monkeypatch.setattr("unetsharp.bench.contestants.TorchChain", Chain)
        weights = weights_file(tmp_path / "w.safetensors")
        model = tiny_onnx()
        helper.set_model_props(model, {METADATA_KEY: dataclasses.replace(INFO, weights_sha256=SHA256).to_json()})
        onnx = tmp_path / "m.onnx"
        onnx.write_bytes(model.SerializeToString())
        bench(BenchSettings(models=(onnx,), against=("torch",), batches=(2,), weights=weights), QUIET)
        assert made == [1, 2]
        assert set(asked) == {(1, 1), (2, 2)}

    def test_networks_of_one_name_are_told_apart(self, quick: None, tmp_path: Path) -> None:
        models = [tmp_path / name / "m.onnx" for name in "ab"]
        for model in models:
            model.parent.mkdir()
            save_tiny_onnx(model)
        rows = bench(BenchSettings(models=tuple(models), batches=(1,)), QUIET)["contestants"]
        assert [row["name"] for row in rows] == [f"{model} on onnxruntime" for model in models]

    def test_onnx_runtime_without_cuda_says_what_it_has(self, tmp_path: Path) -> None:
        settings = BenchSettings(models=(save_tiny_onnx(tmp_path / "m.onnx"),), against=("onnxruntime-cuda",))
        with pytest.raises(MissingCapabilityError, match=r"CPUExecutionProvider.* pip install onnxruntime-gpu"):
            bench(settings, QUIET)

    def test_what_is_measured_is_no_peer(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="is what is measured"):
            bench(BenchSettings(models=(save_tiny_onnx(tmp_path / "m.onnx"),), against=("onnxruntime",)), QUIET)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    folder = tmp_path_factory.mktemp("bench")
    models = [str(save_tiny_onnx(folder / f"{name}.onnx")) for name in ("first", "second")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "TURNS", 2)
        patch.setattr(measure, "TURN_S", 0.02)
        patch.setattr(measure, "SINGLE_S", 0.1)
        patch.setattr(roofline, "_SIDE", 128)
        words = ["bench", *models, "--batch", "1,3", "--out", str(folder / "out"), "--json"]
        return CliRunner().invoke(app, words), folder / "out"


class TestCommand:
    def test_the_record_is_whole(self, done: tuple[Result, Path]) -> None:
        result, out = done
        assert result.exit_code == 0, result.output
        record = json.loads(result.stdout)
        assert record == json.loads((out / "bench.json").read_text())
        first, second = record["contestants"]
        assert first["name"] == "first.onnx on onnxruntime"
        assert first["onnx_sha256"] == hashlib.sha256((out.parent / "first.onnx").read_bytes()).hexdigest()
        assert set(first["batches"]) == {"1", "3"}
        for row in first["batches"].values():
            assert 0 < row["least"] <= row["tiles_per_s"] <= row["most"]
            assert set(row["stage_s"]) == {"stain", "network", "finish"}
        ratio = first["batches"]["3"]["tiles_per_s"] / second["batches"]["3"]["tiles_per_s"]
        assert second["batches"]["3"]["first_is_faster_by"] == pytest.approx(ratio)
        assert first["from_files"]["tiles_per_s"] > 0
        assert first["roofline"]["share"]["compute"] > 0
        assert record["arguments"]["batches"] == [1, 3]
        system = record["system"]
        assert system["processor"] and system["cores"] >= 1
        assert {"driver", "cuda", "gpus", "packages", "unetsharp"} <= set(system)

    def test_the_chart_is_an_svg_with_every_contestant(self, done: tuple[Result, Path]) -> None:
        _, out = done
        drawn = ElementTree.fromstring((out / "bench.svg").read_text())
        words = " ".join(element.text or "" for element in drawn.iter())
        assert "first.onnx on onnxruntime" in words
        assert "second.onnx on onnxruntime" in words
        assert "Milliseconds a tile by stage" in words
        assert json.loads((out / "bench.json").read_text())["system"]["processor"] in words

    def test_the_chart_holds_long_names_and_many_contestants(self, done: tuple[Result, Path]) -> None:
        _, out = done
        record = json.loads((out / "bench.json").read_text())
        first = {**record["contestants"][0], "name": "/data/" + "long/" * 30 + "bundle & co"}
        drawn = ElementTree.fromstring(chart({**record, "contestants": [first] * 9}))
        labels = [e.text or "" for e in drawn.iter() if e.get("text-anchor") == "end"]
        assert max(map(len, labels)) <= 29
        assert labels[0].endswith("bundle & co")
        assert len(labels) == 2 * 9 + 2, "a bar for each contestant and batch, and for the first one's stages"

    def test_people_get_a_table(self, quick: None, tmp_path: Path) -> None:
        model = save_tiny_onnx(tmp_path / "m.onnx")
        result = CliRunner().invoke(app, ["bench", str(model), "--batch", "2", "-q"])
        assert result.exit_code == 0, result.output
        for word in ("tiles/s", "p99", "finish", "roofline", "GMAC/s", "GB/s", "cores"):
            assert word in result.stdout
        assert max(map(len, result.stdout.splitlines())) <= 80

    def test_a_folder_that_cannot_be(self, quick: None, tmp_path: Path) -> None:
        model = save_tiny_onnx(tmp_path / "m.onnx")
        (tmp_path / "file").write_text("")
        result = CliRunner().invoke(app, ["bench", str(model), "--batch", "1", "--out", str(tmp_path / "file" / "x")])
        assert result.exit_code == 2
        assert "cannot be written" in result.stderr

    def test_the_stain_step_beside_torchstain(self, quick: None, tmp_path: Path) -> None:
        pytest.importorskip("torchstain", reason="torchstain is not installed: pip install 'unetsharp[train]'")
        settings = BenchSettings(models=(save_tiny_onnx(tmp_path / "m.onnx"),), against=("torchstain",), batches=(2,))
        record = bench(settings, QUIET)
        assert len(record["contestants"]) == 1
        seconds = record["stain_step_s"]
        assert list(seconds)[:2] == ["m.onnx on onnxruntime", "torchstain, cpu"]
        assert all(1e-5 < value < 10 for value in seconds.values())

    def test_without_torchstain_it_says_so(self, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torchstain.torch.normalizers.macenko", None)
        settings = BenchSettings(models=(save_tiny_onnx(tmp_path / "m.onnx"),), against=("torchstain",), batches=(1,))
        with pytest.raises(MissingCapabilityError, match=r"pip install 'unetsharp\[train\]'"):
            bench(settings, QUIET)

    @pytest.mark.slow
    def test_the_torch_peer_runs_what_ships(self, quick: None) -> None:
        pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'unetsharp[export]'")
        record = bench(BenchSettings(against=("torch",), batches=(1,)), QUIET)
        assert [entry["name"] for entry in record["contestants"]] == ["edge network on onnxruntime", "torch"]
        assert record["contestants"][1]["batches"]["1"]["first_is_faster_by"] > 0
