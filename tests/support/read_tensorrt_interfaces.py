"""What TensorRT's Python bindings offer, read off the bindings themselves: classes, accepted arguments, enums.

    pip download --no-deps -d wheels tensorrt-cu12-bindings==10.3.0      (for the Python that runs this)
    cd tests/support
    python read_tensorrt_interfaces.py ../../wheels/*.whl > "tensorrt_interfaces/tensorrt 10.3.json"
    python read_tensorrt_interfaces.py tensorrt_rtx > "tensorrt_interfaces/tensorrt-rtx 1.7.json"

Of a wheel of bindings nothing but the bindings is needed: no GPU, and none of NVIDIA's libraries, for which gcc makes
stand-ins that hold the functions that the bindings link to, and never run. A module's name reads what is installed.

Recorded so: 8.6 from tensorrt 8.6.0; 10.3 (JetPack 6) and 10.13 (JetPack 7) from tensorrt-cu12-bindings 10.3.0 and
10.13.3.9.post1; 11.4 from tensorrt-cu13-bindings 11.4.0.106; TensorRT-RTX from tensorrt-rtx-cu13 1.7.1.116.
"""

import ctypes
import importlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

CLASSES = (
    "Builder",
    "EngineInspector",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IProgressMonitor",
    "IRuntimeConfig",
    "ITimingCache",
    "OnnxParser",
    "ParserError",
    "Runtime",
)
"""Those that we use, as far as a version has them."""
ENUMS = (
    "BuilderFlag",
    "ComputeCapability",
    "DataType",
    "DynamicShapesKernelSpecializationStrategy",
    "ExecutionContextAllocationStrategy",
    "HardwareCompatibilityLevel",
    "LayerInformationFormat",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "PreviewFeature",
    "ProfilingVerbosity",
    "TacticSource",
    "TensorFormat",
)

LINKED = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
"""What the bindings take from the libraries."""

PLAIN = {
    "typing.SupportsInt": "int",
    "typing.SupportsFloat": "float",
    "typing_extensions.Buffer": "buffer",
    "nvinfer1::IEngineInspector": "EngineInspector",
    "nvonnxparser::IParserError": "ParserError",
}
"""Other names of types: what newer versions of pybind11 call those of older ones, and what TensorRT calls its own."""


_WITHIN_A_LINE = r'\n {4,}|\n {3}(?=[\]}]|"\w+",?\n)|\n {2}(?=\])'
"""Breaks between lines that are taken out of JSON, so that each member of a class and each enum has a line."""


def interface_of(module: ModuleType) -> dict[str, Any]:
    """Version, classes with their members, and enums with theirs, ready for JSON."""
    enums = {name: list(getattr(module, name).__members__) for name in ENUMS if hasattr(module, name)}
    classes = {name: _members(getattr(module, name)) for name in CLASSES if hasattr(module, name)}
    return {"version": module.__version__, "classes": classes, "enums": enums}


def _members(kind: type) -> dict[str, Any]:
    """Of a method the signatures that it accepts; of a property the types it gives and takes; of others nothing."""
    names = ["__init__", *(name for name in dir(kind) if not name.startswith(_left_out(kind)))]
    found = {name: getattr(kind, name) for name in names}
    return {name: _property(of) if isinstance(of, property) else _signatures(of) for name, of in found.items()}


def _left_out(kind: type) -> tuple[str, ...]:
    """Beginnings of names: what is private, and of networks what adds layers by hand; ours come from the parser."""
    return ("_", "add_") if kind.__name__ == "INetworkDefinition" else ("_",)


def _property(of: property) -> dict[str, str]:
    """``get`` and ``set``, as far as it can be read and written."""
    told = {}
    if of.fget and "->" in (of.fget.__doc__ or ""):
        told["get"] = _plain(of.fget.__doc__ or "").rsplit(" -> ", 1)[1]
    elif of.fget:
        told["get"] = "object"
    if of.fset:
        told["set"] = _plain(of.fset.__doc__ or "").partition("arg1: ")[2].rpartition(") -> ")[0]
    return told


def _signatures(of: Any) -> list[str]:
    """Each as ``(name: type, name: type = ...) -> type``, without self; none for what is no method."""
    lines = re.findall(r"^(?:\d+\. )?\w+\((self: .*|arg0: .*)\) -> (.*)$", getattr(of, "__doc__", None) or "", re.M)
    return [f"({_without_self(_plain(arguments))}) -> {_plain(result)}" for arguments, result in lines]


def _without_self(arguments: str) -> str:
    return ", ".join(re.sub(r" = .*", " = ...", argument) for argument in _split(arguments)[1:])


def _split(arguments: str) -> list[str]:
    """At commas that are in no brackets."""
    return [part.strip() for part in re.split(r",(?![^\[<(]*[\]>)])", arguments)]


def _plain(text: str) -> str:
    for long, short in PLAIN.items():
        text = text.replace(long, short)
    return re.sub(r"\b(?:tensorrt(?:_rtx)?(?:_bindings)?\.)+(?:tensorrt(?:_rtx)?\.)?|nvinfer1::", "", text.strip())


def bindings_in(wheel: Path, folder: Path) -> ModuleType:
    """The bindings in ``wheel``, imported from ``folder``, with stand-ins for the libraries that they link to."""
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(folder)
    (shared,) = folder.glob("*/tensorrt.so")
    for library in sorted(set(re.findall(rb"libnv\w+\.so\.\d+", shared.read_bytes()))):
        ctypes.CDLL(str(_stand_in(library.decode(), folder)), ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(folder))
    return importlib.import_module(shared.parent.name)


def _stand_in(library: str, folder: Path) -> Path:
    source = folder / "stand_in.c"
    source.write_text("\n".join(f"void *{name}(void) {{ return 0; }}" for name in LINKED))
    command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", folder / library, source]
    subprocess.run(command, check=True)
    return folder / library


def main(what: str) -> None:
    """Print the interface of ``what``, a wheel or an installed module's name."""
    with tempfile.TemporaryDirectory() as folder:
        module = bindings_in(Path(what), Path(folder)) if what.endswith(".whl") else importlib.import_module(what)
        text = json.dumps(interface_of(module), indent=1)
        print(re.sub(_WITHIN_A_LINE, " ", text))


if __name__ == "__main__":
    main(sys.argv[1])
