"""Which of a bundle's engines this machine can run, known before TensorRT sees a byte of it.

An engine fits where library, version, GPU and platform are those it was built for. NVIDIA's rules, as documented for
TensorRT 11.4 and TensorRT-RTX 1.5 ("Engine Compatibility", "Support Matrix"):

- TensorRT runs engines of its own version alone; version-compatible ones also run on later versions of the same major
  version, and those of 10 on 11, those of 8 on 10. TensorRT-RTX never runs another version's.
- An engine runs on the compute capabilities it was built for; with hardware compatibility, from sm80 on.
- Engines do not move between platforms (Linux and Windows, x86-64 and Arm).

Use: ``engine = fitting_engine(bundle, host_of(loaded))``, then ``bundle.read_engine(engine)`` gives the bytes to load.
"""

import re
from dataclasses import dataclass

from unetsharp import machine
from unetsharp.build.bundle import Bundle
from unetsharp.build.flavours import RTX, TENSORRT, Loaded
from unetsharp.build.manifest import EngineEntry
from unetsharp_engines.errors import InputError, MissingCapabilityError

__all__ = ["Host", "engines_for", "fitting_engine", "host_of", "misfits"]

_NAMES = {flavour.runtime: flavour.name for flavour in (TENSORRT, RTX)}
_ACROSS_MAJORS = {(8, 10), (10, 11)}
"""Major versions (built by, run by) between which version-compatible engines move."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """What would run an engine."""

    runtime: str
    """``tensorrt`` or ``tensorrt-rtx``."""
    version: str
    """Of that library."""
    target: str
    """Compute capability of the GPU, e.g. ``sm86``."""
    platform: str
    """As `unetsharp.machine.os_and_arch` tells it."""

    def __str__(self) -> str:
        return f"{_NAMES[self.runtime]} {self.version}, {self.target}, {self.platform}"


def host_of(loaded: Loaded) -> Host:
    """This machine with its first GPU and the library ``loaded``. Raises MissingCapabilityError without a GPU."""
    gpus = machine.gpus()
    if not gpus:
        raise MissingCapabilityError(
            f"{loaded.label} runs engines on an NVIDIA GPU, and this machine's driver shows none; "
            "--runtime onnxruntime runs the bundle's ONNX on the CPU"
        )
    return Host(
        runtime=loaded.flavour.runtime,
        version=loaded.version,
        target=gpus[0].target,
        platform=machine.os_and_arch(),
    )


def fitting_engine(bundle: Bundle, host: Host) -> EngineEntry:
    """The engine of ``bundle`` to run on ``host``: of several, one of its very version, for the fewest other GPUs.

    Raises InputError, in one line with both sides and the command that builds what is missing, where none fits.
    """
    same_runtime = engines_for(bundle, host.runtime)
    fitting = [engine for engine in same_runtime if not misfits(engine, host)]
    if not fitting:
        nearest = min(same_runtime, key=lambda engine: len(misfits(engine, host)))
        raise InputError(
            f"{bundle.root}: no engine in it fits this machine ({host}): {_nearest(nearest, len(same_runtime))} "
            f"{' and '.join(misfits(nearest, host))}; {_build_one(bundle, host.runtime)}"
        )
    return min(fitting, key=lambda engine: (engine.version != host.version, len(engine.targets)))


def engines_for(bundle: Bundle, runtime: str) -> list[EngineEntry]:
    """The engines of ``bundle`` for ``runtime``, whatever the machine. Raises InputError where it holds none."""
    engines = [engine for engine in bundle.manifest.engines if engine.runtime == runtime]
    if not engines:
        held = ", ".join(sorted({engine.runtime for engine in bundle.manifest.engines})) or "no runtime"
        raise InputError(f"{bundle.root}: holds engines for {held}, none for {runtime}; {_build_one(bundle, runtime)}")
    return engines


def _nearest(engine: EngineEntry, count: int) -> str:
    return "its engine" if count == 1 else f"the nearest of its {count} engines, {engine.file.path},"


def misfits(engine: EngineEntry, host: Host) -> list[str]:
    """What of ``engine`` does not fit ``host``, as ends of a sentence about it; nothing where it fits."""
    found = []
    if engine.runtime != host.runtime:
        found.append(f"is for {engine.runtime}")
    if not _version_fits(engine, host):
        later = " or later" if engine.version_compatible else ""
        found.append(f"was built by {_NAMES[engine.runtime]} {engine.version} and needs that version{later}")
    if not _gpu_fits(engine, host):
        found.append(f"runs on {'sm80 and newer' if engine.ampere_plus else ', '.join(engine.targets)} only")
    if engine.platform != host.platform:
        found.append(f"was built on {engine.platform}")
    return found


def _gpu_fits(engine: EngineEntry, host: Host) -> bool:
    return host.target in engine.targets or (engine.ampere_plus and int(host.target.removeprefix("sm")) >= 80)


def _version_fits(engine: EngineEntry, host: Host) -> bool:
    if engine.version == host.version:
        return True
    built, here = _numbers(engine.version), _numbers(host.version)
    majors = (built[0], here[0])
    allowed = majors[0] == majors[1] or majors in _ACROSS_MAJORS
    return engine.runtime == TENSORRT.runtime and engine.version_compatible and here > built and allowed


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", version))


def _build_one(bundle: Bundle, runtime: str) -> str:
    return f"--rebuild builds one, or: unetsharp build-engine {bundle.root} -o {bundle.root} --add --runtime {runtime}"
