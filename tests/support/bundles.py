"""Bundles of a few bytes, a machine that fits them, and a TensorRT that keeps what it is given to deserialize."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

from support.fake_cuda import Gpu as FakeGpu
from support.fake_tensorrt import FakeRuntime, install
from support.tiny_onnx import INFO
from unetsharp import machine
from unetsharp.build.bundle import Bundle, file_entry, write_bundle
from unetsharp.build.fit import Host
from unetsharp.build.manifest import EngineEntry, Manifest
from unetsharp.build.trust import signed
from unetsharp.cli.output import Output, Verbosity
from unetsharp.runtimes import open_runtime
from unetsharp_engines.errors import InputError

QUIET = Output(verbosity=Verbosity.QUIET)
ENGINE, ONNX = b"vtrt" + bytes(range(256)) * 8, b"\x08\x09" + b"model" * 100
HOST = Host(runtime="tensorrt-rtx", version="1.7.1.116", target="sm86", platform="linux-x86_64")
"""Fits `engine_entry`."""


def engine_entry(content: bytes = ENGINE, path: str = "engine.plan", **changes: Any) -> EngineEntry:
    """An engine for sm86 and sm89, unsigned."""
    entry = EngineEntry(
        file=file_entry(path, content),
        runtime="tensorrt-rtx",
        version="1.7.1.116",
        cuda="13",
        targets=("sm86", "sm89"),
        platform="linux-x86_64",
        profile={"min": (1, 3, 64, 64), "opt": (4, 3, 64, 64), "max": (8, 3, 64, 64)},
        options={},
        seconds=1.5,
    )
    return dataclasses.replace(entry, **changes)


def own(entry: EngineEntry) -> EngineEntry:
    """``entry``, signed as if it had been built here."""
    return signed(entry, file_entry("model.onnx", ONNX).sha256, QUIET)


def manifest_of(*engines: EngineEntry) -> Manifest:
    """A manifest of `ONNX` and ``engines``; without any, of `engine_entry` built here."""
    return Manifest(
        created="2026-01-02T03:04:05+00:00",
        tool_version="0.1.0",
        info=INFO,
        precision="fp16",
        onnx=file_entry("model.onnx", ONNX),
        engines=engines or (own(engine_entry()),),
    )


def written(root: Path, *engines: EngineEntry, content: bytes = ENGINE) -> Bundle:
    """A bundle at ``root`` whose engines, by default one built here, all hold ``content``."""
    manifest = manifest_of(*(engines or (own(engine_entry(content)),)))
    return write_bundle(root, manifest, {"model.onnx": ONNX, **{e.file.path: content for e in manifest.engines}})


class RecordingTensorRt:
    """Stands for ``tensorrt_rtx`` on a GPU made of numpy: `seen` holds every engine that it was given, and refused."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def load(self, root: Path, name: str = HOST.runtime, *, trust: bool = False) -> None:
        """Open the bundle ``root`` on the runtime called ``name``, as commands do, on the machine `HOST`.

        Raises what that raises, unless an engine got as far as TensorRT.
        """
        with pytest.MonkeyPatch.context() as patch:
            install(FakeGpu(), patch, most=8)
            patch.setattr(sys.modules["tensorrt_rtx"], "__version__", HOST.version)
            patch.setattr(FakeRuntime, "deserialize_cuda_engine", lambda _, content: self.seen.append(content))
            patch.setattr(machine, "gpus", lambda: (machine.Gpu(name="test", target=HOST.target, memory_bytes=1),))
            patch.setattr(machine, "os_and_arch", lambda: HOST.platform)
            try:
                open_runtime(root, name, trust=trust)
            except InputError:
                if not self.seen:
                    raise


def refused(root: Path, says: str, name: str = HOST.runtime) -> None:
    """Loading ``root`` ends in one line that names the bundle and holds ``says``; TensorRT gets nothing."""
    trt = RecordingTensorRt()
    with pytest.raises(InputError) as caught:
        trt.load(root, name)
    line = str(caught.value)
    assert trt.seen == []
    assert says in line
    assert str(root) in line
    assert "\n" not in line
    assert len(line) < 700, "a line that a person reads"
