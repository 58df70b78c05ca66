"""The kernels' machine code: compiled by NVRTC where it is first needed, kept on disk from then on.

Neither a GPU nor nvcc is needed to compile, only the packages that `MissingCapabilityError` names.
"""

import functools
import hashlib
import json
import os
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from unetsharp_engines.cuda.constants import constants_header
from unetsharp_engines.errors import MissingCapabilityError
from unetsharp_engines.files import replacing

__all__ = [
    "ARCHITECTURES",
    "SURROUNDING",
    "Compiled",
    "KernelFacts",
    "cache_folder",
    "compile_kernels",
    "compile_ptx",
    "sources",
]

ARCHITECTURES: tuple[str, ...] = ("sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_120")
"""Turing to Blackwell; sm_87 is Jetson Orin. What the kernels are kept compiling for."""

_PTX_VERSION = b".version 6.3"
"""The oldest that knows the oldest of them: of CUDA 10."""

_OPTIONS = ("--std=c++17", "--fmad=false", "--ptxas-options=-v")

SURROUNDING: str = "\n".join(f'#include "{name}.cu"' for name in ("stain_apply", "stain_estimate", "finish"))
"""The program of the kernels that surround the network."""

_INSTALL = "pip install 'cuda-bindings[all]'"


@dataclass(frozen=True, kw_only=True)
class KernelFacts:
    """What one kernel takes of the machine, in the compiler's words."""

    registers: int
    """Per thread."""
    spilled_bytes: int
    """Per thread: registers that did not fit, stored and loaded."""
    stack_bytes: int
    shared_bytes: int
    """Per block."""


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A program's kernels, for one architecture."""

    architecture: str
    cubin: bytes
    """What ``pycuda.driver.module_from_buffer`` loads."""
    kernels: dict[str, KernelFacts]
    warnings: tuple[str, ...]
    """Lines of the compiler's log that warn."""


def compile_kernels(arch: str, program: str = SURROUNDING) -> Compiled:
    """The kernels of ``program`` for ``arch``, such as ``sm_90``: from the cache, else compiled and put there.

    MissingCapabilityError where NVRTC is not installed or knows no such architecture.
    """
    nvrtc = _nvrtc()
    options = (f"--gpu-architecture={arch}", *_OPTIONS)
    known = cache_folder() / f"kernels-{arch}-{_digest((program, *options), nvrtc)}"
    cubin, log = known.with_suffix(".cubin"), known.with_suffix(".log")
    if cubin.exists() and log.exists():
        code, said = cubin.read_bytes(), log.read_text("utf-8")
    else:
        code, said = _compile(nvrtc, arch, options, program)
        _keep(cubin, code)
        _keep(log, said.encode())
    return Compiled(architecture=arch, cubin=code, kernels=_facts(said), warnings=_warnings(said))


@functools.cache
def compile_ptx(program: str) -> bytes:
    """The kernels of ``program`` as PTX that a driver compiles for any of `ARCHITECTURES`; no closing zero; seconds.

    NVRTC declares the PTX version of its own CUDA, whatever the kernels use of it, and older drivers refuse that. What
    is declared here is all that they use. MissingCapabilityError as `compile_kernels`.
    """
    arch = ARCHITECTURES[0].replace("sm_", "compute_")
    options = (f"--gpu-architecture={arch}", *_OPTIONS[:2])
    text = _compile(_nvrtc(), arch, options, program)[0].rstrip(b"\0")
    return re.sub(rb"^\.version .*$", _PTX_VERSION, text, count=1, flags=re.MULTILINE)


def _keep(path: Path, content: bytes) -> None:
    """Write a cache entry; where the cache cannot be written, compiling again next time is all it costs."""
    with suppress(OSError), replacing(path) as temporary:
        temporary.write_bytes(content)


def sources() -> dict[str, str]:
    """Every CUDA source by file name, the constants' header included."""
    files = resources.files("unetsharp_engines.cuda").joinpath("sources").iterdir()
    found = {file.name: file.read_text("utf-8") for file in files if file.name.endswith((".cu", ".cuh"))}
    return dict(sorted(found.items())) | {"constants.cuh": constants_header()}


def cache_folder() -> Path:
    """Where compiled kernels are kept: the user's cache folder, as the platform has it."""
    home = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "unetsharp" / "kernels"


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()  # the library itself is loaded here
    except (ImportError, RuntimeError) as error:
        raise MissingCapabilityError(f"compiling CUDA kernels needs NVRTC ({error}); install it: {_INSTALL}") from error
    return nvrtc


def _digest(asked: tuple[str, ...], nvrtc: Any) -> str:
    everything = json.dumps([asked, nvrtc.nvrtcVersion()[1:], sources()])
    return hashlib.sha256(everything.encode()).hexdigest()[:16]


def _compile(nvrtc: Any, arch: str, options: tuple[str, ...], program: str) -> tuple[bytes, str]:
    """Machine code, or PTX for a virtual architecture, and log."""
    headers = sources()
    names, texts = ([text.encode() for text in part] for part in (headers.keys(), headers.values()))
    _, created = nvrtc.nvrtcCreateProgram(program.encode(), b"kernels.cu", len(headers), texts, names)
    try:
        (status,) = nvrtc.nvrtcCompileProgram(created, len(options), [option.encode() for option in options])
        said = _fetched(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, created).rstrip(b"\0").decode()
        if status == nvrtc.nvrtcResult.NVRTC_ERROR_INVALID_OPTION:
            raise MissingCapabilityError(f"the installed NVRTC does not compile for {arch}; update it: {_INSTALL}")
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise RuntimeError(f"NVRTC: {status.name} for {arch}\n{said}")
        if arch.startswith("compute_"):
            return _fetched(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, created), said
        return _fetched(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, created), said
    finally:
        nvrtc.nvrtcDestroyProgram(created)


def _fetched(size_of: Any, fetch: Any, program: Any) -> bytes:
    _, size = size_of(program)
    buffer = bytes(size)  # the binding writes into it
    fetch(program, buffer)
    return buffer


_KERNEL = re.compile(
    r"Function properties for (?P<name>\w+)\s.*?(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\s.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def _facts(log: str) -> dict[str, KernelFacts]:
    """Of every kernel, from what the assembler said."""
    return {
        found["name"]: KernelFacts(
            registers=int(found["registers"]),
            spilled_bytes=int(found["stores"]) + int(found["loads"]),
            stack_bytes=int(found["stack"]),
            shared_bytes=_shared(found["rest"]),
        )
        for found in _KERNEL.finditer(log)
    }


def _shared(rest: str) -> int:
    found = re.search(r"(\d+) bytes smem", rest)
    return int(found[1]) if found else 0


def _warnings(log: str) -> tuple[str, ...]:
    return tuple(line for line in log.splitlines() if "warning" in line.lower())
