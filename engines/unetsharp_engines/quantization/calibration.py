"""Streaming calibration: a float network is run image by image, and only histograms of its tensors are kept."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto

from unetsharp_engines.contract import INPUT_NAME
from unetsharp_engines.files import read_sealed, write_sealed
from unetsharp_engines.quantization.histogram import MagnitudeHistogram
from unetsharp_engines.rewrites.graph import Graph

__all__ = ["Calibration", "batch_size", "session", "with_outputs"]

_BYTES_AT_ONCE = 256 << 20
"""Of fetched tensors; ONNX Runtime holds about three times as much while it runs a batch."""

_MOST_AT_ONCE = 16


class Calibration:
    """Histograms of ``tensors`` over any number of images, in memory that does not grow with them.

    `feed` it batches in turn. What it knows can be `save`d whole and taken up again by `restore`: the result is the
    same as without the interruption.
    """

    def __init__(self, model: ModelProto, tensors: Sequence[str], *, threads: int | None = None) -> None:
        """``model`` is a float32 network as the contract has it; ``threads`` is how many cores it may use."""
        self.tensors = tuple(tensors)
        self.histograms = {name: MagnitudeHistogram() for name in self.tensors}
        self.images = 0
        """Images fed so far."""
        self._session = session(with_outputs(model, self.tensors), threads)

    def feed(self, x_NCHW: npt.NDArray[np.float32]) -> None:
        """Count what a batch, as `runtimes.base.network_input` makes it, does to every tensor.

        Raises InputError where the network computes numbers that are not finite.
        """
        values = self._session.run(list(self.tensors), {INPUT_NAME: x_NCHW})
        for name, value in zip(self.tensors, values, strict=True):
            self.histograms[name].add(value)
        self.images += len(x_NCHW)

    def save(self, path: Path, key: str) -> None:
        """Write what is known so far; ``key`` says of what model, images and settings it holds."""
        histograms = [self.histograms[name] for name in self.tensors]
        packed = io.BytesIO()
        np.savez(
            packed,
            key=np.array(key),
            images=np.array(self.images),
            tensors=np.array(self.tensors),
            counts=np.stack([h.counts for h in histograms]),
            exponent=np.array([h.exponent for h in histograms]),
            zeros=np.array([h.zeros for h in histograms]),
            largest=np.array([h.largest for h in histograms]),
        )
        write_sealed(path, packed.getvalue())

    def restore(self, path: Path, key: str) -> bool:
        """Take up what was saved under the same ``key``; False if there is none or another, or it is damaged."""
        packed = read_sealed(path) if path.is_file() else None
        if packed is None:
            return False
        with np.load(io.BytesIO(packed), allow_pickle=False) as saved:
            if str(saved["key"]) != key or tuple(saved["tensors"].tolist()) != self.tensors:
                return False
            columns = [saved[name].tolist() for name in ("exponent", "zeros", "largest")]
            rows = zip(saved["counts"], *columns, strict=True)
            self.histograms = {n: MagnitudeHistogram(*row) for n, row in zip(self.tensors, rows, strict=True)}
            self.images = int(saved["images"])
        return True


def batch_size(model: ModelProto, tensors: Sequence[str]) -> int:
    """Images at once so that the values of ``tensors``, of a network of fixed sides, stay within 256 MB: 1 to 16."""
    shapes = Graph(model).shapes(batch=1)
    one = sum(4 * math.prod(side or 1 for side in shapes[name]) for name in tensors)
    return max(1, min(_MOST_AT_ONCE, _BYTES_AT_ONCE // max(one, 1)))


def session(model: ModelProto, threads: int | None) -> Any:
    """An ONNX Runtime session on the CPU that gives memory back between runs of different shapes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; they are raised as well
    options.intra_op_num_threads = threads or 0
    options.enable_cpu_mem_arena = False
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def with_outputs(model: ModelProto, tensors: Sequence[str]) -> ModelProto:
    """``model`` with ``tensors`` as its only outputs."""
    wide = ModelProto()
    wide.CopyFrom(model)
    del wide.graph.output[:]
    wide.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in tensors)
    return wide
