"""unetsharp inspect: what files are, told by their content."""

import dataclasses
import io
import json
import struct
import subprocess
import sys
import types
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from rich.console import Console

from support.bundles import ENGINE, ONNX, engine_entry, manifest_of, own, written
from support.tiny_onnx import INFO, save_tiny_onnx, tiny_onnx
from unetsharp import machine
from unetsharp.build.bundle import Bundle, write_bundle
from unetsharp.build.pipeline import BuildOptions, build_bundle
from unetsharp.cli.output import Output, Verbosity
from unetsharp.export.precision import to_fp16
from unetsharp.inspection import look_at
from unetsharp.inspection.tables import table_of
from unetsharp_engines.contract import CLASSES
from unetsharp_engines.errors import InputError
from unetsharp_engines.files import sha256_of
from unetsharp_engines.model_info import METADATA_KEY
from unetsharp_engines.rewrites import rewrite
from unetsharp_engines.rewrites.cost import node_costs
from unetsharp_engines.rewrites.graph import Graph
from unetsharp_engines.rewrites.plugin_node import DOMAIN, OP_TYPE

PROGRAM = str(Path(sys.executable).with_name("unetsharp"))
QUIET = Output(verbosity=Verbosity.QUIET)


def shown(facts: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(table_of(facts))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def save_weights(path: Path, *, metadata: dict[str, str] | None = None) -> Path:
    """A safetensors file written by hand, as its specification has it: no library needed to read it either."""
    tensors: dict[str, npt.NDArray[Any]] = {
        "encoder.conv.weight": np.ones((8, 3, 3, 3), np.float32),
        "encoder.norm.running_mean": np.zeros(8, np.float32),
        "decoder.head.weight": np.ones((6, 8, 1, 1), np.float16),
    }
    header: dict[str, Any] = {"__metadata__": metadata or {METADATA_KEY: INFO.to_json()}}
    start = 0
    for name, array in tensors.items():
        kind = {"f": "F"}[array.dtype.kind] + str(array.dtype.itemsize * 8)
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [start, start + array.nbytes]}
        start += array.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in tensors.values()))
    return path


def test_weights_from_their_header(tmp_path: Path) -> None:
    facts = look_at(save_weights(tmp_path / "weights.bin"))
    assert facts["kind"] == "weights"
    assert facts["network"]["name"] == "tiny"
    assert facts["parameters"] == 8 * 27 + 48, "running statistics are no parameters"
    assert facts["parameters_by_part"] == {"encoder": 216, "decoder": 48}
    assert facts["formats"] == {"F32": 2, "F16": 1}
    assert "U-Net# on none, width 4" in shown(facts)


def test_weights_as_the_library_writes_them(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    arrays = {"head.weight": np.zeros((2, 3), np.float32), "n": np.zeros((), np.int64)}
    safetensors.save_file(arrays, tmp_path / "w.safetensors", metadata={"format": "np"})
    facts = look_at(tmp_path / "w.safetensors")
    assert (facts["network"], facts["parameters"]) == (None, 7)
    assert "no unetsharp metadata" in shown(facts)


def test_onnx(tmp_path: Path) -> None:
    facts = look_at(save_tiny_onnx(tmp_path / "model.onnx"))
    assert (facts["kind"], facts["precision"], facts["opset"]) == ("ONNX", "fp32", {"ai.onnx": 17})
    assert facts["inputs"] == [{"name": "image", "dtype": "float", "shape": ["N", 3, 64, 64]}]
    assert facts["operations"]["Conv"] == 2
    assert facts["parameters"] == 4 * 27 + 4 * 4 + len(CLASSES) * 36
    # By hand: 32² outputs of 4 channels from 27 inputs each, 64² of 6 from 36 each.
    assert facts["macs"] == 32 * 32 * 4 * 27 + 64 * 64 * 6 * 36
    assert facts["sha256"] == sha256_of(tmp_path / "model.onnx")
    assert "[N, 3, 64, 64]" in shown(facts)


def test_onnx_in_fp16(tmp_path: Path) -> None:
    onnx.save(to_fp16(tiny_onnx()), tmp_path / "half.onnx")
    facts = look_at(tmp_path / "half.onnx")
    assert facts["precision"] == "fp16"
    assert facts["macs"] == look_at(save_tiny_onnx(tmp_path / "full.onnx"))["macs"]


def test_onnx_with_our_own_kernel(tmp_path: Path) -> None:
    shipped = onnx.ModelProto.FromString(files("unetsharp.assets").joinpath("edge.onnx").read_bytes())
    rewritten, _ = rewrite(shipped, ["deep-one-kernel"])
    onnx.save(rewritten, tmp_path / "model.onnx")
    facts = look_at(tmp_path / "model.onnx")
    assert facts["macs"] == sum(cost.macs for node, cost in node_costs(Graph(rewritten)) if node.op_type == "Conv")
    assert facts["runs_on"] == ["tensorrt"]
    assert "TensorRT alone" in shown(facts)


@pytest.mark.parametrize("lacking", ["input", "attribute"])
def test_what_only_bears_its_name(tmp_path: Path, lacking: str) -> None:
    model = tiny_onnx()
    bearer = next(node for node in model.graph.node if node.name == "mish")
    bearer.op_type, bearer.domain = OP_TYPE, DOMAIN
    if lacking == "attribute":
        bearer.input.append(next(t.name for t in model.graph.initializer if len(t.dims) == 1))
    onnx.save(model, tmp_path / "model.onnx")
    assert "shapes are not known" in shown(look_at(tmp_path / "model.onnx"))


def test_bundle_without_an_engine(tmp_path: Path) -> None:
    source = save_tiny_onnx(tmp_path / "m.onnx")
    build_bundle(source, tmp_path / "bundle", BuildOptions(runtime="onnxruntime"), QUIET)
    facts = look_at(tmp_path / "bundle")
    assert (facts["kind"], facts["problems"], facts["runs_on"]) == ("bundle", [], ["onnxruntime"])
    assert "every file has the size and SHA-256" in shown(facts)


def test_bundle_and_engine(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'unetsharp[rtx]'")
    import tensorrt_rtx

    options = BuildOptions(runtime="tensorrt-rtx", targets=("sm86", "sm89"))
    bundle = build_bundle(save_tiny_onnx(tmp_path / "m.onnx"), tmp_path / "bundle", options, QUIET)
    assert "sm86, sm89" in shown(look_at(bundle.root))
    facts = look_at(bundle.root / bundle.manifest.engines[0].file.path)
    assert (facts["kind"], facts["runtime"]) == ("engine", "tensorrt-rtx")
    assert facts["version"] == tensorrt_rtx.__version__, "its header holds the version of its builder"


INT8 = {
    "method": "minmax",
    "images": 128,
    "images_sha256": "ab" * 32,
    "drift": {"float_dice": 0.8, "int8_dice": 0.796, "agreement": 0.9912, "images": 64, "dice_drop": 0.005},
}


def quantized(root: Path) -> Bundle:
    layers = {"head": "fp32", **{f"conv{n}": "int8" for n in range(9)}}
    manifest = dataclasses.replace(manifest_of(), precision="int8", layers=layers, quantization=INT8)
    return write_bundle(root, manifest, {"model.onnx": ONNX, "engine.plan": ENGINE})


@pytest.mark.parametrize("name", ["bundle", "bundle.zip"])
def test_all_that_a_bundle_says_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: ())
    text = " ".join(shown(look_at(quantized(tmp_path / name).root)).split())
    for part in (
        "precision int8",
        "layers 9 in int8, 1 in fp32 (fp32: head)",
        "minmax over 128 images, SHA-256 abababababab…",
        "foreground Dice 0.8000 → 0.7960, 99.12% of pixels keep their class, on 64 other images",
        "image: RGB × 0.0039216 → logits",
        "hematoxylin (0.5626, 0.7201, 0.4062) up to 1.9705",
        "tensorrt-rtx 1.7.1.116, CUDA 13",
        "sm86, sm89; 1.7.1.116; linux-x86_64",
        "1×3×64×64 … 4×3×64×64 … 8×3×64×64",
        "built by you",
        "this machine's driver shows no NVIDIA GPU",
        "every file has the size and SHA-256",
    ):
        assert part in text


@pytest.mark.parametrize("record", [{}, {"drift": None}, {"drift": {"float_dice": "much"}}, {"method": ["mse"]}])
def test_a_record_of_quantization_from_another_version_is_shown_as_far_as_it_goes(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    manifest = dataclasses.replace(manifest_of(), quantization=record)
    root = write_bundle(tmp_path / "b", manifest, {"model.onnx": ONNX, "engine.plan": ENGINE}).root
    assert "calibration" in shown(look_at(root))


def test_whose_engine_it_is_and_whether_it_runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = dataclasses.replace(engine_entry(path="foreign.plan", targets=("sm120",)), signature="0" * 64)
    root = written(tmp_path / "bundle", own(engine_entry()), foreign).root
    trt = types.SimpleNamespace(__version__="1.7.1.116")
    monkeypatch.setattr(machine, "gpus", lambda: (machine.Gpu(name="RTX 3090", target="sm86", memory_bytes=1),))
    monkeypatch.setattr(machine, "os_and_arch", lambda: "linux-x86_64")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", trt)  # type: ignore[arg-type]
    facts = look_at(root)
    assert [(engine["trusted"], engine["here"]) for engine in facts["engines"]] == [
        (True, []),
        (False, ["runs on sm120 only"]),
    ]
    assert facts["runs_on"] == ["onnxruntime", "tensorrt-rtx"]
    text = shown(facts)
    assert "fits this machine" in text
    assert "foreign: not built by you here, so it wants --trust" in text


def test_a_bundle_that_does_not_verify_is_shown_and_ends_with_2(tmp_path: Path) -> None:
    source = save_tiny_onnx(tmp_path / "m.onnx")
    root = build_bundle(source, tmp_path / "bundle", BuildOptions(runtime="onnxruntime"), QUIET).root
    content = bytearray((root / "model.onnx").read_bytes())
    content[-1] ^= 1
    (root / "model.onnx").write_bytes(content)
    done = subprocess.run([PROGRAM, "inspect", root, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    facts = json.loads(done.stdout)
    assert (len(facts["problems"]), facts["runs_on"]) == (1, [])
    assert "model.onnx: its SHA-256 begins" in done.stderr
    assert done.stderr.count("\n") == 1


def whole(path: Path) -> bytes:
    return save_weights(path).read_bytes()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty file"),
        (b"hello, world, this is text\n" * 9, "neither weights, nor ONNX, nor an engine"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "neither weights, nor ONNX, nor an engine"),
        (b"\x08" + b"\xff" * 99, "not a whole ONNX"),
        (b"\x08\x09", "without a single node"),
        (struct.pack("<Q", 1 << 60) + b"{" + bytes(50), "neither weights"),
        (struct.pack("<Q", 9) + b"{not json", "header cannot be read"),
        (struct.pack("<Q", 2) + b"{}" + bytes(50), "its header says 10"),
        (struct.pack("<Q", 7) + b'{"a":1}', "header cannot be read"),
        (struct.pack("<Q", 60_000) + b"{" * 60_000, "header cannot be read"),
        (None, "no such file"),
    ],
)
def test_what_is_none_of_them_is_refused_in_one_line(tmp_path: Path, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        look_at(tmp_path / "file")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_truncated_weights_are_refused(tmp_path: Path, share: float) -> None:
    content = whole(tmp_path / "whole")
    (tmp_path / "part").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError):
        look_at(tmp_path / "part")


def test_folders_without_a_manifest_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"without manifest\.json"):
        look_at(tmp_path)


def test_the_command_as_a_person_runs_it(tmp_path: Path) -> None:
    source = save_tiny_onnx(tmp_path / "a [strange] name.onnx")
    done = subprocess.run([PROGRAM, "inspect", source], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "a[strange]name.onnx" in "".join(done.stdout.split()), "brackets are no markup; long names are folded"
    done = subprocess.run([PROGRAM, "inspect", tmp_path / "none"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
