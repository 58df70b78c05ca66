"""TensorRT and TensorRT-RTX: what differs between them, and between their versions, in one place.

====================  ==========================  =========================  ======================
                      TensorRT 8.6                TensorRT 10, 11            TensorRT-RTX
====================  ==========================  =========================  ======================
Builds on             the GPU it will run on      the GPU it will run on     any machine, no GPU
Builds for            that GPU                    that GPU                   several GPUs at once
Batch dimension       flag EXPLICIT_BATCH         always explicit            always explicit
Precision             builder flags FP16, INT8    flag STRONGLY_TYPED;       always strongly typed
                                                  11 has no other way
Kernels               its own, no cuDNN, cuBLAS   its own                    its own
Contexts share a      PROFILE_SHARING_0806        always (10 still has the   always
profile                                           flag, and has it on)
CUDA graphs           always                      always                     REQUIRE_USER_ALLOCATION
``--level`` and so    yes                         yes                        does not autotune
Progress, stopping    none                        IProgressMonitor           IProgressMonitor
Layers are told by    its inspector, on the GPU   its inspector, on the GPU  the engine's own file
====================  ==========================  =========================  ======================

TensorRT-RTX is run by this project's tests, and TensorRT 8.6 built engines on an H100. TensorRT 10 and 11 have not run:
every call is held to what their own bindings say they accept, those of 10.3 (JetPack 6), 10.13 (JetPack 7) and 11.4.
Tests build with doubles that refuse all else, and mypy checks the calls by ``unetsharp_engines.tensorrt_api``. What a
call then does is NVIDIA's documentation.
"""

import importlib
import importlib.metadata
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from unetsharp import machine
from unetsharp_engines.errors import InputError, MissingCapabilityError

if TYPE_CHECKING:
    from unetsharp_engines.tensorrt_api import TensorRt

__all__ = [
    "PORTABLE_OPSET",
    "RTX",
    "TENSORRT",
    "TURING",
    "Flavour",
    "Loaded",
    "flavour_named",
    "is_strongly_typed",
    "load",
]

_TARGET = re.compile(r"sm\d{2,3}")
_OWN_KERNELS = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
PORTABLE_OPSET = 17
"""ONNX opset that every TensorRT from 8.6 on parses."""
TURING = "sm75"
"""NVIDIA advises an engine of its own for it."""


@dataclass(frozen=True, kw_only=True)
class Flavour:
    """One of NVIDIA's two TensorRTs."""

    runtime: str
    """As ``--runtime`` takes it."""
    name: str
    """As NVIDIA writes it."""
    module: str
    """Its Python module; both have the same interface but for the table above."""
    install: str
    """What to do where it is missing."""
    autotunes: bool
    """Measures kernels while it builds, on the GPU it builds for: then it needs one."""


TENSORRT = Flavour(
    runtime="tensorrt",
    name="TensorRT",
    module="tensorrt",
    install="pip install 'unetsharp[gpu]' (on a Jetson: sudo apt install nvidia-jetpack, and a virtual environment "
    "made with --system-site-packages)",
    autotunes=True,
)
RTX = Flavour(
    runtime="tensorrt-rtx",
    name="TensorRT-RTX",
    module="tensorrt_rtx",
    install="pip install 'unetsharp[rtx]'",
    autotunes=False,
)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A flavour whose module was imported."""

    flavour: Flavour
    trt: "TensorRt"
    """The module."""

    @property
    def version(self) -> str:
        """Version of the library, e.g. ``1.7.1.116``: what its bindings say without the ``.post1`` of their package."""
        return self.trt.__version__.partition(".post")[0]

    @property
    def label(self) -> str:
        """Name and version, for people."""
        return f"{self.flavour.name} {self.version}"

    @property
    def cuda(self) -> str | None:
        """CUDA major version it was made for, from its package's name (``tensorrt-rtx-cu13``); else the driver's."""
        packages = importlib.metadata.packages_distributions().get(self.flavour.module, [])
        found = re.search(r"cu(\d+)", " ".join(packages))
        return found.group(1) if found else machine.cuda_version()

    def supported_targets(self) -> tuple[str, ...]:
        """Compute capabilities that it builds for here, e.g. ``("sm75", "sm80", …)``, in ascending order."""
        if self.flavour.autotunes:
            return tuple(sorted({gpu.target for gpu in machine.gpus()[:1]}))
        rtx: Any = self.trt  # has them alone
        return tuple(name.lower() for name in rtx.ComputeCapability.__members__ if name.startswith("SM"))

    def targets(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """``wanted`` checked and without repeats; where it is empty, what this flavour builds for by default.

        TensorRT's default is this machine's GPU, TensorRT-RTX's every GPU from sm80 on: one engine for all, of the
        same size. Turing (sm75) takes other kernels, so it has to be asked for. Raises InputError.
        """
        supported = self.supported_targets()
        for target in wanted:
            if not _TARGET.fullmatch(target):
                raise InputError(f"--target {target}: not a compute capability; write 8.6 as sm86")
            if target not in supported:
                raise InputError(
                    f"--target {target}: {self.label} builds for {', '.join(supported)} here; {self._elsewhere()}"
                )
        return tuple(dict.fromkeys(wanted)) or tuple(t for t in supported if self.flavour.autotunes or t != TURING)

    def _elsewhere(self) -> str:
        if self.flavour.autotunes:
            return "run this on the machine that has such a GPU, without --target"
        return "for others run this with --runtime tensorrt on the device itself"

    def network_flags(self) -> int:
        """Flags for ``Builder.create_network``, as the table says."""
        wanted = ["STRONGLY_TYPED"] if self.is_strongly_typed else ["EXPLICIT_BATCH"]
        members = self.trt.NetworkDefinitionCreationFlag.__members__
        return sum(1 << int(members[name]) for name in wanted if name in members)

    def tactic_sources(self) -> int:
        """Mask for ``set_tactic_sources``: TensorRT's own kernels, so that an engine needs no cuDNN or cuBLAS."""
        members = self.trt.TacticSource.__members__
        return sum(1 << int(members[name]) for name in _OWN_KERNELS if name in members)

    @property
    def can_be_stopped(self) -> bool:
        """Whether it tells its progress, and asks whether to go on: from TensorRT 10 on, and TensorRT-RTX."""
        return hasattr(self.trt, "IProgressMonitor")

    @property
    def is_strongly_typed(self) -> bool:
        """Whether tensors keep the types the ONNX gives them; else builder flags allow FP16."""
        return is_strongly_typed(self.flavour.runtime, self.version)


def is_strongly_typed(runtime: str, version: str) -> bool:
    """`Loaded.is_strongly_typed` of a runtime that need not be here: TensorRT is from version 10 on."""
    return runtime == RTX.runtime or int(version.split(".")[0]) >= 10


def flavour_named(runtime: str) -> Flavour:
    """The flavour that ``--runtime`` calls ``runtime``. Raises KeyError."""
    return {flavour.runtime: flavour for flavour in (TENSORRT, RTX)}[runtime]


def load(flavour: Flavour) -> Loaded:
    """Import ``flavour``. Raises MissingCapabilityError where it is not installed, does not load, or lacks its GPU."""
    if flavour.autotunes and not machine.gpus():
        raise MissingCapabilityError(
            f"{flavour.name} builds on the GPU that the engine is for, and this machine has none; "
            f"--runtime {RTX.runtime} builds without a GPU"
        )
    try:
        trt = cast("TensorRt", importlib.import_module(flavour.module))
    except (ImportError, OSError) as error:  # OSError: its shared libraries do not load
        raise MissingCapabilityError(f"{flavour.name} cannot be loaded here ({error}); {flavour.install}") from error
    return Loaded(flavour=flavour, trt=trt)
