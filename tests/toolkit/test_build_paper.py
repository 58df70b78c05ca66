"""Real engines of the paper's configuration, by TensorRT-RTX: time to build, and what the rewrites save in them."""

import time
from collections.abc import Sequence
from typing import Any

import onnx
import pytest
import torch

from unetsharp.build.builder import Plan, Profile, build_engine
from unetsharp.build.flavours import RTX, load
from unetsharp.cli.output import Output, Verbosity
from unetsharp.export.precision import to_fp16
from unetsharp.export.tracing import trace
from unetsharp.inspection.layers import Layer, by_kind
from unetsharp.inspection.rtx_program import kernels_of
from unetsharp_engines.quantization import place, quantize
from unetsharp_engines.rewrites import DEFAULT, TYPED, rewrite
from unetsharp_engines.rewrites.graph import Graph
from unetsharp_trainer.network import UNetSharp

SECONDS = 20.0
QUIET = Output(verbosity=Verbosity.QUIET)


@pytest.fixture(scope="module")
def plain() -> onnx.ModelProto:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'unetsharp[rtx]'")
    pytest.importorskip("onnxsim", reason="onnxsim is not installed: pip install 'unetsharp[export]'")
    torch.manual_seed(0)
    return trace(UNetSharp().eval(), size=256, opset=17)


@pytest.fixture(scope="module")
def rewritten(plain: onnx.ModelProto) -> onnx.ModelProto:
    return rewrite(plain, DEFAULT["tensorrt-rtx"])[0]


@pytest.fixture(scope="module")
def fp16_kernels(rewritten: onnx.ModelProto) -> tuple[Layer, ...]:
    return built(finished(to_fp16(rewritten)), "fp16", "sm86", "sm89", "sm120")


def finished(typed: onnx.ModelProto) -> onnx.ModelProto:
    return rewrite(typed, TYPED["tensorrt-rtx"])[0]


def built(model: onnx.ModelProto, precision: str, *targets: str) -> tuple[Layer, ...]:
    """Kernels of one engine for all ``targets``, which must not take long to build: processor time counts, since
    other tests share the cores."""
    least, best, most = ((n, 3, 256, 256) for n in (1, 8, 16))
    plan = Plan(
        name="U-Net#",
        onnx=model.SerializeToString(),
        precision=precision,
        profile=Profile(min=least, opt=best, max=most),
        targets=targets,
    )
    start = time.process_time()
    engine = build_engine(load(RTX), plan, QUIET)
    assert time.process_time() - start < SECONDS
    return kernels_of(engine)


def moved(kernels: Sequence[Layer]) -> int:
    return sum(kernel.read + kernel.written for kernel in kernels)


def layers(kernels: Sequence[Layer]) -> list[dict[str, Any]]:
    return [vars(kernel) for kernel in kernels]


def test_rewrites_save_bytes_in_the_engine(plain: onnx.ModelProto, fp16_kernels: tuple[Layer, ...]) -> None:
    before, after = built(to_fp16(plain), "fp16", "sm86"), fp16_kernels
    assert moved(after) < 0.8 * moved(before)
    assert not [kernel.name for kernel in after if kernel.kind == "Mish"], "Mish is part of its convolution"
    widest = max(kernel.written for kernel in before)
    assert widest == 2 * 320 * 256**2, "the head's upsampled map of the plain network"
    assert max(kernel.written for kernel in after) <= widest // 4
    convolutions = [kernel for kernel in after if kernel.kind == "convolution"]
    assert {kernel.precision for kernel in convolutions} == {"fp16"}
    assert len(convolutions) > 100


def test_weights_are_read_once_in_half_precision(fp16_kernels: tuple[Layer, ...]) -> None:
    parameters = sum(p.numel() for p in UNetSharp().parameters())
    assert sum(kernel.weights for kernel in fp16_kernels) == pytest.approx(2 * parameters, rel=0.06)


@pytest.mark.parametrize("target", ["sm86", "sm89", "sm120"])
def test_int8_engines_are_built(rewritten: onnx.ModelProto, target: str) -> None:
    placement = place(Graph(rewritten))
    quantized = quantize(rewritten, placement, dict.fromkeys(placement.tensors, 8.0))
    kinds = by_kind(layers(built(finished(to_fp16(quantized)), "int8", target)))
    assert kinds["convolution"][0] > 100
