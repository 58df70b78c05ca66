"""The deep convolutions' kernel as a TensorRT plugin compiled ahead of time: its PTX becomes part of the engine.

What runs such an engine needs neither Python nor unetsharp, and may capture it in a CUDA graph. TensorRT takes such
plugins from 10.9 on, through ``tensorrt.plugin``, as functions: one tells shape and type, one the layouts among which
TensorRT chooses by timing, one the kernel and how it is launched.
"""

import functools
from typing import Any

import numpy as np

from unetsharp.build.flavours import Loaded
from unetsharp_engines.contract import TAPS
from unetsharp_engines.cuda.compiling import compile_ptx
from unetsharp_engines.cuda.constants import DEEP_ROWS, DEEP_THREADS
from unetsharp_engines.cuda.deep import DeepKernel, program
from unetsharp_engines.errors import MissingCapabilityError
from unetsharp_engines.rewrites.plugin_node import DOMAIN, OP_TYPE

__all__ = ["check_takes_plugin", "holds_plugin", "provide_plugin"]

_ID = f"{DOMAIN}::{OP_TYPE}"
_Factors = np.ndarray[Any, np.dtype[np.int32]]


def holds_plugin(onnx: bytes) -> bool:
    """Whether the network ``onnx``, serialized, asks for the plugin: by its name, which nothing else has."""
    return OP_TYPE.encode() in onnx


def check_takes_plugin(loaded: Loaded) -> None:
    """Raise MissingCapabilityError, in one line, where this TensorRT takes no plugins compiled ahead of time."""
    if not hasattr(loaded.trt, "QuickPluginCreationRequest"):
        raise MissingCapabilityError(
            f"{loaded.label} takes no kernel into its engines, which the rewrite deep-one-kernel asks for; "
            f"TensorRT does from 10.9 on: update it, or leave the rewrite out"
        )


def provide_plugin(loaded: Loaded) -> None:
    """Let TensorRT's ONNX parser find the plugin, from now on in this process.

    Raises MissingCapabilityError as `check_takes_plugin`, and where NVRTC is missing, which compiles the kernel.
    """
    check_takes_plugin(loaded)
    compile_ptx(program(()))  # what is missing is told here: TensorRT would only print it
    _register()


@functools.cache
def _register() -> None:
    """Once a process: TensorRT refuses a second time."""
    import tensorrt as trt
    import tensorrt.plugin as trtp

    def describe(
        taps: trtp.TensorDesc, scale: trtp.TensorDesc, shift: trtp.TensorDesc, factors: _Factors
    ) -> trtp.TensorDesc:
        n, channels, height, width = taps.shape_expr
        rows, columns = map(int, factors)
        return trtp.from_shape_expr((n, channels // TAPS, height * rows, width * columns), dtype=taps.dtype)

    def layouts(
        taps: trtp.TensorDesc, scale: trtp.TensorDesc, shift: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc]
    ) -> list[trtp.AutoTuneCombination]:
        real = "FP16" if taps.dtype == trt.float16 else "FP32"
        vectors = real == "FP16" and DeepKernel.takes_channels_last(scale.shape[0])
        return [
            trtp.AutoTuneCombination(f"{real}, FP32, FP32, {real}", f"{layout}, LINEAR, LINEAR, {layout}")
            for layout in ("LINEAR", *["HWC8"] * vectors)
        ]

    def compiled(
        taps: trtp.TensorDesc,
        scale: trtp.TensorDesc,
        shift: trtp.TensorDesc,
        factors: _Factors,
        outputs: tuple[trtp.TensorDesc],
        tactic: int,
    ) -> tuple[str, bytes, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        half, channels_last = taps.dtype == trt.float16, taps.format == trt.TensorFormat.HWC8
        kernel = DeepKernel(factor=int(factors[0]), half=half, channels_last=channels_last)
        n, _, height, width = taps.shape_expr
        channels = scale.shape_expr[0]
        threads = kernel.threads(channels, trtp.cdiv(height, DEEP_ROWS), width)
        launch = trtp.KernelLaunchParams(grid_x=trtp.cdiv(threads, DEEP_THREADS), grid_y=n, block_x=DEEP_THREADS)
        between = trtp.SymIntExprs.from_tuple([trtp.SymInt32(side) for side in (channels, height, width)])
        return kernel.name, compile_ptx(program([kernel])), launch, between

    trtp.register(_ID)(describe)
    trtp.autotune(_ID)(layouts)
    trtp.aot_impl(_ID)(compiled)
