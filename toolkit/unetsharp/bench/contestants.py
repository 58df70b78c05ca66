"""Who is measured: networks on their runtimes, and peers of the same network."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unetsharp.bench.torch_chain import MODES, TorchChain
from unetsharp.build.bundle import open_bundle
from unetsharp.model_files import ModelKind, kind_of
from unetsharp.runtimes import open_runtime
from unetsharp_engines.errors import InputError
from unetsharp_engines.files import sha256_of
from unetsharp_engines.model_info import ModelInfo
from unetsharp_engines.runtimes.base import Runtime

if TYPE_CHECKING:
    from unetsharp.cli.output import Output

__all__ = ["PEERS", "Contestant", "peers_of", "subjects"]

_ONNX_DEVICES: dict[str, Literal["cpu", "cuda"]] = {"onnxruntime": "cpu", "onnxruntime-cuda": "cuda"}
PEERS = (*MODES, *_ONNX_DEVICES)
"""What ``--against`` takes, beside `torchstain.NAME`."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One row of the table."""

    name: str
    runtimes: dict[int, Runtime]
    """By batch size; mostly one and the same."""
    onnx: bytes | None = None
    """Its network, to count what it costs; None where it is not at hand."""

    @property
    def runtime(self) -> Runtime:
        """The one for the smallest batch."""
        return self.runtimes[min(self.runtimes)]


def subjects(
    models: Sequence[Path], runtime: str, batches: Sequence[int], *, trust: bool, output: "Output", closing: ExitStack
) -> list[Contestant]:
    """The networks to measure; without ``models`` the edge-sized one that ships. Raises what `open_runtime` does."""
    opened = []
    named: list[Path | None] = [*models] or [None]
    for model, name in zip(named, _names(models) or ["edge network"], strict=True):
        network = closing.enter_context(open_runtime(model, runtime, trust=trust, output=output))
        runtimes: dict[int, Runtime] = dict.fromkeys(batches, network)
        opened.append(Contestant(name=f"{name} on {network.name}", runtimes=runtimes, onnx=_onnx_of(model)))
    return opened


def peers_of(
    subject: Contestant,
    model: Path | None,
    names: Sequence[str],
    batches: Sequence[int],
    *,
    weights: Path | None,
    closing: ExitStack,
) -> list[Contestant]:
    """The same network as ``subject``, which is ``model``, on each of `PEERS` in ``names``.

    PyTorch runs ``weights``; where they are not given, ``model`` itself or those that ship, if ``subject`` was made of
    them. Raises InputError where there are no weights, or they are another network's.
    """
    return [_peer(name, subject, model, batches, weights, closing) for name in names]


def _names(models: Sequence[Path]) -> list[str]:
    """The last part of each path, or where these are not different the paths."""
    names = [model.name for model in models]
    return names if len(set(names)) == len(names) else [str(model) for model in models]


def _peer(
    name: str,
    subject: Contestant,
    model: Path | None,
    batches: Sequence[int],
    weights: Path | None,
    closing: ExitStack,
) -> Contestant:
    if name == subject.runtime.name:
        raise InputError(f"--against {name}: {subject.name} is what is measured; leave it out")
    if name in _ONNX_DEVICES:
        if subject.onnx is None:
            raise InputError(f"--against {name}: {model} holds no ONNX; export it, and name the ONNX")
        from unetsharp_engines.runtimes.onnxruntime import OnnxRuntime

        one = closing.enter_context(OnnxRuntime(subject.onnx, device=_ONNX_DEVICES[name]))
        return Contestant(name=name, runtimes=dict.fromkeys(batches, one), onnx=subject.onnx)
    path = _weights_of(subject.runtime.info, model, weights, name, closing)
    chains: dict[int, Runtime] = {n: closing.enter_context(TorchChain(path, name=name, batch=n)) for n in batches}
    return Contestant(name=name, runtimes=chains, onnx=subject.onnx)


def _weights_of(info: ModelInfo, model: Path | None, weights: Path | None, peer: str, closing: ExitStack) -> Path:
    if weights is not None:
        return _checked(weights, info)
    if model is not None and kind_of(model) is ModelKind.WEIGHTS:
        return model
    shipped = closing.enter_context(as_file(files("unetsharp") / "assets" / "edge.safetensors"))
    if info.weights_sha256 != sha256_of(shipped):
        raise InputError(f"--against {peer}: PyTorch runs weights; name those of {info.name} by --weights")
    return shipped


def _checked(weights: Path, info: ModelInfo) -> Path:
    """``weights``, if what is measured was made of them. Raises InputError: else two networks would be raced."""
    if (kind := kind_of(weights)) is not ModelKind.WEIGHTS:
        raise InputError(f"--weights {weights}: {kind.named}; give the weights (.safetensors)")
    if (seen := sha256_of(weights)) != info.weights_sha256:
        wanted = f"{info.weights_sha256[:12]}…" if info.weights_sha256 else "weights that it does not name"
        raise InputError(
            f"--weights {weights}: have the SHA-256 {seen[:12]}…, and {info.name}, which is measured, was made of "
            f"{wanted}: give its own, or peers would run another network"
        )
    return weights


def _onnx_of(model: Path | None) -> bytes | None:
    if model is None:
        return (files("unetsharp") / "assets" / "edge.onnx").read_bytes()
    kind = kind_of(model)
    if kind is ModelKind.BUNDLE:
        return open_bundle(model).read_onnx()
    return model.read_bytes() if kind is ModelKind.ONNX else None
