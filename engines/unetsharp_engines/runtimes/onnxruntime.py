"""ONNX Runtime: on the CPU it runs everywhere, and is the reference of every exported network."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from unetsharp_engines.contract import CLASSES, INPUT_NAME, OUTPUT_NAME, TAPS_NAME
from unetsharp_engines.errors import InputError, MissingCapabilityError
from unetsharp_engines.model_info import METADATA_KEY, ModelInfo
from unetsharp_engines.quantization.rounding import has_float16, spelled_out
from unetsharp_engines.rewrites import TAIL_KEY, HeadTail, finish, tuned
from unetsharp_engines.runtimes.base import Runtime, network_input
from unetsharp_engines.runtimes.processor import sums_int8_exactly
from unetsharp_engines.stain import StainPlan

__all__ = ["OnnxRuntime"]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntime(Runtime):
    """An exported network on ONNX Runtime's CPU provider or, asked for, its CUDA provider.

    A network exported for one batch size serves every size: short batches are filled up. One exported for one side
    takes only that side. A tail-less one is finished here.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        threads: int | None = None,
        tuned: bool = True,
        device: Literal["cpu", "cuda"] = "cpu",
    ) -> None:
        """Load ``model``, an ONNX file or its bytes; ``threads`` is how many cores it may use, all by default.

        ``tuned`` networks, unless exported with ``--no-rewrite``, are given the exact rewrites that are fastest on
        ONNX Runtime; others are run as the file has them. A float16 network is computed as a GPU would: with every
        tensor rounded to float16 (`quantization.rounding`). On ``cuda`` the network runs as the file has it, and stain
        normalization and labels stay on the CPU. Raises InputError where it is no ONNX that unetsharp exported,
        MissingCapabilityError where this ONNX Runtime has no CUDA provider.
        """
        import onnxruntime

        source = str(model) if isinstance(model, Path) else "the ONNX given as bytes"
        prepared = _prepared(model, tuned) if device == "cpu" else model
        self._session: Any = _session(prepared, source, threads, _PROVIDERS[device])
        self._tail = _tail(self._session, source)
        super().__init__(
            info=_info(self._session, source), name="onnxruntime", version=onnxruntime.__version__, device=device
        )
        self._input_NCHW = _input_shape(self._session, self._tail, source)

    @property
    def batch(self) -> int:
        """On a CPU 2: what a batch holds in memory grows with it."""
        return 2 if self.device == "cpu" else super().batch

    def close(self) -> None:
        """Free the network's memory."""
        self._session = None

    def _logits(self, tiles_NHWC: npt.NDArray[np.uint8], stain: StainPlan) -> npt.NDArray[np.float32]:
        batch, _, *sides = self._input_NCHW
        self._check_sides(tiles_NHWC, sides)
        x_NCHW = network_input(tiles_NHWC, stain)
        if not isinstance(batch, int):
            return self._run(x_NCHW)
        parts = [self._run_filled(x_NCHW[start : start + batch], batch) for start in range(0, len(x_NCHW), batch)]
        return np.concatenate(parts)

    def _run_filled(self, x_NCHW: npt.NDArray[np.float32], batch: int) -> npt.NDArray[np.float32]:
        missing = batch - len(x_NCHW)
        return self._run(np.pad(x_NCHW, ((0, missing), (0, 0), (0, 0), (0, 0))))[: len(x_NCHW)]

    def _run(self, x_NCHW: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        (output,) = self._session.run(None, {INPUT_NAME: x_NCHW})
        return np.asarray(output, np.float32) if self._tail is None else finish(output, self._tail)

    def _check_sides(self, tiles_NHWC: npt.NDArray[np.uint8], sides: list[int | str]) -> None:
        for seen, wanted in zip(tiles_NHWC.shape[1:3], sides, strict=True):
            if isinstance(wanted, int) and seen != wanted:
                raise InputError(
                    f"tiles are {list(tiles_NHWC.shape)}; this ONNX was exported for {sides[0]} by {sides[1]} pixels"
                )


def _prepared(model: Path | bytes, tune: bool) -> Path | bytes:
    """What to give ONNX Runtime for ``model``; a missing file, or what is no ONNX, is left for it to refuse."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types

    if isinstance(model, Path) and not model.is_file():
        return model
    content = model if isinstance(model, bytes) else model.read_bytes()
    try:
        parsed = onnx.load_model_from_string(content)
    except DecodeError:
        return content
    if has_float16(parsed):
        prepared = spelled_out(parsed)
    else:
        prepared = tuned("onnxruntime", parsed) if tune else parsed
    return content if prepared is parsed else bytes(prepared.SerializeToString())


def _session(model: Path | bytes, source: str, threads: int | None, provider: str) -> Any:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    if provider not in (available := onnxruntime.get_available_providers()):
        raise MissingCapabilityError(
            f"this ONNX Runtime has {', '.join(available)}, not {provider}: pip install onnxruntime-gpu"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; they are raised as well
    options.intra_op_num_threads = threads or 0
    if not sums_int8_exactly():  # unsigned by unsigned: slower, but right
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        session = onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=[provider]
        )
    except errors.NoSuchFile as error:
        raise InputError(f"{source}: no such file; give an ONNX file that `unetsharp export` wrote") from error
    except (
        errors.Fail,
        errors.InvalidProtobuf,
        errors.InvalidGraph,
        errors.InvalidArgument,
        errors.NotImplemented,
    ) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{source}: not an ONNX that ONNX Runtime can load ({reason})") from error
    if provider not in session.get_providers():  # it goes on without one whose libraries or GPU are missing
        raise MissingCapabilityError(
            f"this ONNX Runtime's {provider} does not start here: it needs an NVIDIA GPU, its driver, and the CUDA and "
            "cuDNN that onnxruntime-gpu was made for"
        )
    return session


def _info(session: Any, source: str) -> ModelInfo:
    metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map
    if METADATA_KEY not in metadata:
        raise InputError(f"{source}: an ONNX without unetsharp's metadata; give one that `unetsharp export` wrote")
    return ModelInfo.from_json(metadata[METADATA_KEY], source=source)


def _tail(session: Any, source: str) -> HeadTail | None:
    """What is left to do behind the network; None if nothing is."""
    text = session.get_modelmeta().custom_metadata_map.get(TAIL_KEY)
    return HeadTail.from_json(text, source=source) if text else None


def _input_shape(session: Any, tail: HeadTail | None, source: str) -> list[int | str]:
    """Shape of the input [N, 3, H, W]; free dimensions are their names. InputError if the tensors are not ours."""
    seen = [(t.name, t.type, t.shape) for t in (*session.get_inputs(), *session.get_outputs())]
    output, channels = (OUTPUT_NAME, len(CLASSES)) if tail is None else (TAPS_NAME, tail.channels)
    wanted = [(INPUT_NAME, 3), (output, channels)]
    fits = [(name, kind, len(shape), *shape[1:2]) for name, kind, shape in seen]
    if fits != [(name, "tensor(float)", 4, channels) for name, channels in wanted]:
        raise InputError(
            f"{source}: its tensors are {seen}; wanted float32 {INPUT_NAME} [N, 3, H, W] → "
            f"{output} [N, {channels}, H, W]"
        )
    return list(session.get_inputs()[0].shape)
