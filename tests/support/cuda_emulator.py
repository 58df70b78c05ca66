"""The CUDA kernels on the CPU: the same sources through a C++ compiler and a small shim, in place of a PyCUDA module.

Device pointers are addresses of numpy arrays. It proves indices and logic, not the absence of races.
"""

import ctypes
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from unetsharp_engines.cuda.compiling import SURROUNDING, sources
from unetsharp_engines.cuda.deep import DEEP_KERNELS, DeepKernels
from unetsharp_engines.cuda.deep import program as deep_program
from unetsharp_engines.cuda.kernels import SIGNATURES, Kernels

SHIM = Path(__file__).parent / "cuda_on_cpu"
_TYPES = {"P": ctypes.c_void_p, "i": ctypes.c_int}


def emulated_kernels(monkeypatch: pytest.MonkeyPatch, *, multiprocessors: int = 1, backwards: bool = False) -> Kernels:
    """`Kernels` that run at once, on the CPU; ``backwards``, the last thread and the last block first.

    Skips the test where there is no C++ compiler.
    """
    driver: Any = ModuleType("pycuda.driver")
    driver.memset_d32_async = lambda to, value, count, stream: ctypes.memset(to, value, 4 * count)
    driver.device_attribute = SimpleNamespace(MULTIPROCESSOR_COUNT=0)
    device = SimpleNamespace(get_attribute=lambda attribute: multiprocessors)
    driver.Context = SimpleNamespace(get_device=lambda: device)
    pycuda: Any = ModuleType("pycuda")
    pycuda.driver = driver
    monkeypatch.setitem(sys.modules, "pycuda", pycuda)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    return Kernels(SimpleNamespace(get_function=lambda name: emulated(name, backwards=backwards)))


def emulated_deep_kernels(*, backwards: bool = False) -> DeepKernels:
    """`DeepKernels` as `emulated_kernels`."""
    return DeepKernels(SimpleNamespace(get_function=lambda name: emulated(name, backwards=backwards)))


def emulated(name: str, *, backwards: bool = False) -> "_Function":
    """One kernel, as PyCUDA's ``module.get_function`` would give it."""
    return _Function(_library(), name, backwards)


class _Function:
    def __init__(self, library: ctypes.CDLL, name: str, backwards: bool) -> None:
        self._library = library
        self._run = library[f"run_{name}"]
        self._backwards = backwards

    def prepare(self, types: str) -> None:
        self._types = [_TYPES[letter] for letter in types]

    def prepared_async_call(self, grid: tuple[int, ...], block: tuple[int, ...], stream: Any, *values: int) -> None:
        held = [kind(value) for kind, value in zip(self._types, values, strict=True)]
        pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(value) for value in held))
        self._library.take_turns_backwards(self._backwards)
        self._run(_index(grid), _index(block), pointers)


class _Index(ctypes.Structure):
    _fields_ = [("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint)]


def _index(sides: tuple[int, ...]) -> _Index:
    return _Index(*sides, *[1] * (3 - len(sides)))


@cache
def _library() -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the kernels for the CPU with")
    folder = Path(mkdtemp(prefix="cuda-on-cpu-"))
    for name, text in sources().items():
        (folder / name).write_text(text)
    for path in SHIM.iterdir():
        shutil.copy(path, folder)
    program = folder / "kernels.cpp"
    program.write_text(_program())
    library = folder / "kernels.so"
    options = ["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-Wno-unknown-pragmas"]
    done = subprocess.run([compiler, *options, str(program), "-o", str(library)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


def _program() -> str:
    entry = (
        'extern "C" void run_{0}(Index grid, Index block, void** arguments) '
        "{{ fibers::launch(fibers::Unpacked<{0}>::call, grid, block, arguments); }}"
    )
    names = (*SIGNATURES, *(kernel.name for kernel in DEEP_KERNELS))
    return "\n".join(['#include "cuda.hpp"', SURROUNDING, deep_program(), *map(entry.format, names), ""])
