"""Which runtime ``build-engine`` builds for: the one asked for, or with ``auto`` the fastest that can be built here."""

from dataclasses import dataclass

from unetsharp import machine
from unetsharp.build.flavours import RTX, TENSORRT, Flavour, Loaded, flavour_named, load
from unetsharp_engines.errors import InputError, MissingCapabilityError

__all__ = ["RUNTIMES", "Choice", "choose"]

RUNTIMES = ("auto", TENSORRT.runtime, RTX.runtime, "onnxruntime")
"""What ``--runtime`` takes."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A runtime and the reason for it."""

    loaded: Loaded | None
    """None is ONNX Runtime, which runs the ONNX itself."""
    targets: tuple[str, ...]
    """Compute capabilities to build for; none for ONNX Runtime."""
    why: str

    @property
    def label(self) -> str:
        """Name and version of the runtime, for people."""
        return "ONNX Runtime" if self.loaded is None else self.loaded.label


def choose(runtime: str, targets: tuple[str, ...]) -> Choice:
    """Choose as the user asked; ``auto`` is TensorRT where there is a GPU for it, else TensorRT-RTX, else ONNX Runtime.

    Raises InputError for an unknown runtime and for targets that it does not build for, MissingCapabilityError for a
    runtime asked for by name, or by its targets, that cannot be had.
    """
    if runtime not in RUNTIMES:
        raise InputError(f"--runtime {runtime}: wanted one of {', '.join(RUNTIMES)}")
    if runtime == "auto":
        return _automatic(targets)
    if runtime == "onnxruntime":
        return _onnxruntime(targets, "as asked; the bundle holds the ONNX alone and runs on every machine")
    return _with(load(flavour_named(runtime)), targets, "as asked")


def _automatic(targets: tuple[str, ...]) -> Choice:
    here = next((gpu.target for gpu in machine.gpus()), None)
    if here and set(targets) <= {here} and (loaded := _try_load(TENSORRT)):
        return _with(loaded, targets, f"the fastest here: it measures kernels on this machine's GPU ({here})")
    if loaded := _try_load(RTX):
        return _with(loaded, targets, _why_rtx(here, loaded))
    if targets:
        raise MissingCapabilityError(f"--target {','.join(targets)} needs {RTX.name}: {RTX.install}")
    return _onnxruntime((), f"since no TensorRT can be used here ({RTX.install} adds one that builds without a GPU)")


def _why_rtx(here: str | None, loaded: Loaded) -> str:
    if here is None:
        return "which builds for other machines' GPUs; this one has none, and will run the bundle's ONNX"
    if here in loaded.supported_targets():
        return f"which builds for many GPUs, this machine's ({here}) among them"
    return f"which builds for other machines' GPUs, not for this one's ({here}): for it, {TENSORRT.install}"


def _try_load(flavour: Flavour) -> Loaded | None:
    try:
        return load(flavour)
    except MissingCapabilityError:
        return None


def _with(loaded: Loaded, targets: tuple[str, ...], why: str) -> Choice:
    return Choice(loaded=loaded, targets=loaded.targets(targets), why=why)


def _onnxruntime(targets: tuple[str, ...], why: str) -> Choice:
    if targets:
        raise InputError(f"--target {','.join(targets)}: ONNX Runtime builds no engine; leave it out")
    return Choice(loaded=None, targets=(), why=why)
