"""The layers that inspect reads from a TensorRT-RTX engine's file, and their picture."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from support.tiny_onnx import save_tiny_onnx, tiny_onnx
from unetsharp.build.builder import Plan, Profile, build_engine
from unetsharp.build.flavours import RTX, load
from unetsharp.build.pipeline import BuildOptions, build_bundle
from unetsharp.cli.app import app
from unetsharp.cli.output import Output, Verbosity
from unetsharp.export.precision import to_fp16
from unetsharp.inspection import look_at
from unetsharp.inspection.layers import Layer, by_kind, picture
from unetsharp.inspection.rtx_program import kernels_of

QUIET = Output(verbosity=Verbosity.QUIET)
SIDE = 64
PIXELS, HALVED = SIDE**2, SIDE**2 // 4


@pytest.fixture(scope="module")
def engine() -> bytes:
    """The tiny network in FP16."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'unetsharp[rtx]'")
    profile = Profile(min=(1, 3, SIDE, SIDE), opt=(4, 3, SIDE, SIDE), max=(8, 3, SIDE, SIDE))
    onnx = to_fp16(tiny_onnx()).SerializeToString()
    plan = Plan(name="tiny", onnx=onnx, precision="fp16", profile=profile, targets=("sm86",))
    return build_engine(load(RTX), plan, QUIET)


def test_every_byte_of_a_known_network_is_counted(engine: bytes) -> None:
    """Per image: fp32 picture in, fp16 within, fp32 logits out; Mish, BatchNorm and resize are one kernel."""
    seen = {kernel.name: kernel for kernel in kernels_of(engine)}
    stem, head = seen["stem"], seen["head"]
    assert (stem.kind, stem.precision, stem.shape) == ("convolution", "fp16", (1, 4, SIDE // 2, SIDE // 2))
    assert (stem.written, head.read, head.written) == (2 * 4 * HALVED, 2 * 4 * PIXELS, 2 * 6 * PIXELS)
    assert head.weights == 2 * 6 * 4 * 9
    (fused,) = (kernel for kernel in seen.values() if kernel.kind == "Mish + BatchNorm + resize")
    assert (fused.read, fused.written, fused.weights) == (2 * 4 * HALVED, 2 * 4 * PIXELS, 2 * 2 * 4)
    assert set(fused.nodes) == {"softplus", "tanh", "mish", "norm", "resize"}
    (last,) = (kernel for kernel in seen.values() if kernel.kind == "cast")
    assert (last.precision, last.written) == ("fp32", 4 * 6 * PIXELS)


def test_inspect_shows_and_draws_them(engine: bytes, tmp_path: Path) -> None:
    file, drawing = tmp_path / "engine.plan", tmp_path / "layers.svg"
    file.write_bytes(engine)
    done = CliRunner().invoke(app, ["inspect", str(file), "--picture", str(drawing)])
    assert done.exit_code == 0, done.output
    assert re.search(r"Mish \+ BatchNorm \+ resize +fp16 +1 +0\.0", done.stdout)
    texts = [e.text or "" for e in ET.parse(drawing).iter() if e.tag.endswith("text")]
    assert any("stem, fp16" in text for text in texts)
    assert len(look_at(file)["layers"]) == len(kernels_of(engine))


def test_a_bundle_tells_its_engines_layers(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'unetsharp[rtx]'")
    options = BuildOptions(runtime="tensorrt-rtx", targets=("sm86",))
    bundle = build_bundle(save_tiny_onnx(tmp_path / "m.onnx"), tmp_path / "bundle", options, QUIET)
    facts = look_at(bundle.root)
    assert facts["layers_of"] == bundle.manifest.engines[0].file.path
    assert by_kind(facts["layers"])["convolution"][0] == 2
    content = bytearray((bundle.root / facts["layers_of"]).read_bytes())
    content[-1] ^= 1
    (bundle.root / facts["layers_of"]).write_bytes(content)
    assert "layers" not in look_at(bundle.root), "of a broken bundle nothing is told but what is broken"


def test_an_engine_that_does_not_tell_has_no_picture(tmp_path: Path) -> None:
    file = tmp_path / "engine.plan"
    file.write_bytes(b"ftrt" + bytes(60))
    done = CliRunner().invoke(app, ["inspect", str(file), "--picture", str(tmp_path / "p.svg")])
    assert (done.exit_code, "its layers are not told" in done.stderr) == (2, True)
    assert not (tmp_path / "p.svg").exists()


@given(cut=st.floats(0, 1), flipped=st.floats(0, 0.999), byte=st.integers(0, 255))
def test_broken_engines_are_read_without_a_crash(cut: float, flipped: float, byte: int) -> None:
    program = b"\0NLYM" + bytes(12) + b"header {\n}\ndescriptors {\n"
    program += b'  tensor={ dims={ "n" 4 } name="a" type=half }\n}\n\nmain {\n'
    program += b'  function={ name=__myl_Mul input_args={ "a" } output_args={ "a" } }\n}\nshape_main {\n'
    program += b'  mul={ name="m" output={"n" } input={"N" "__s^192i64" } stream=0 }\n}\n'
    broken = bytearray(program)
    broken[int(flipped * len(broken))] = byte
    kernels_of(bytes(broken[: int(cut * len(broken))]))


def engine_of(sides: str) -> bytes:
    """The program of one kernel that doubles a tensor [n, 4]; ``sides`` computes n."""
    text = f"""header {{
}}
descriptors {{
  tensor={{ dims={{ "n" 4 }} name="a" type=half }}
  tensor={{ dims={{ "n" 4 }} name="b" type=half }}
}}

main {{
  function={{ name=__myl_Mul input_args={{ "a" }} output_args={{ "b" }} }}
}}
shape_main {{
{sides}
}}
"""
    return b"NLYM" + bytes(12) + text.encode()


def test_sides_that_hold_the_batch_count_what_they_hold_per_image() -> None:
    copied = '  copy={ name="c" output={"n" } input={"m" }  stream=0 }'
    multiplied = '  mul={ name="m" output={"m" } input={"{N}" "__s^192i64" } stream=0 }'
    (kernel,) = kernels_of(engine_of(f"{copied}\n{multiplied}"))
    assert (kernel.shape, kernel.read, kernel.written) == ((192, 4), 2 * 192 * 4, 2 * 192 * 4)
    (plain,) = kernels_of(engine_of(""))
    assert plain.shape == (1, 4)


@pytest.mark.parametrize("kind", ["select", "copy"])
def test_sides_computed_in_unknown_ways_are_not_told(kind: str) -> None:
    assert kernels_of(engine_of(f'  {kind}={{ name="s" output={{"n" }} input={{"n" }} stream=0 }}')) == ()


def test_sums_by_kind_are_ordered() -> None:
    kernels = [
        vars(Layer(name="k", kind=kind, nodes=(), precision="fp16", shape=(1,), read=read, written=1, weights=0))
        for kind, read in (("mul", 1), ("convolution", 9), ("mul", 2))
    ]
    assert list(by_kind(kernels).items()) == [("convolution", (1, 10)), ("mul", (2, 5))]
    assert "3 layers move 0.0 MB" in picture(kernels, "<title>")
    assert "&lt;title&gt;" in picture(kernels, "<title>")
