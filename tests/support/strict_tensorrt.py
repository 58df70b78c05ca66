"""TensorRT modules that build nothing, and refuse every name that the real ones do not have.

``tensorrt_interfaces.json`` was read off TensorRT 8.6.0 and TensorRT-RTX 1.7.1 themselves (``dir``), and off the stubs
published for TensorRT 10.13.
"""

import enum
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

INTERFACES: dict[str, Any] = json.loads(Path(__file__).with_name("tensorrt_interfaces.json").read_text("utf-8"))


class Strict:
    """An object of class ``of``: only the names in ``has``; what is set and called is kept in ``log``."""

    def __init__(self, of: str, has: list[str], log: list[tuple[str, Any]], **methods: Any) -> None:
        vars(self).update(_of=of, _has=set(has), _log=log, _methods=methods)

    def __getattr__(self, name: str) -> Any:
        self._require(name)
        return self._methods.get(name) or (lambda *arguments: self._log.append((name, arguments)) or True)

    def __setattr__(self, name: str, value: Any) -> None:
        self._require(name)
        self._log.append((name, value))

    def _require(self, name: str) -> None:
        if name not in self._has:
            raise AttributeError(f"{self._of} has no {name}")


def strict_tensorrt(which: str) -> tuple[SimpleNamespace, list[tuple[str, Any]]]:
    """The module of ``which``, one of `INTERFACES`, and the list in which what its builder is told appears."""
    known, log = INTERFACES[which], []
    enums = {
        name: enum.Enum(name, {member: i for i, member in enumerate(members)}, type=int)
        for name, members in known["enums"].items()
    }

    def strict(name: str, **methods: Any) -> Strict:
        return Strict(name, known["classes"][name], log, **methods)

    cache = strict("ITimingCache", serialize=lambda: b"timings")
    config = strict("IBuilderConfig", create_timing_cache=lambda _: cache, get_timing_cache=lambda: cache)
    builder = strict(
        "Builder",
        create_network=lambda flags: log.append(("network flags", flags)) or strict("INetworkDefinition"),
        create_builder_config=lambda: config,
        create_optimization_profile=lambda: strict("IOptimizationProfile"),
        build_serialized_network=lambda *_: b"engine",
    )
    classes = {
        "Builder": lambda _: builder,
        "OnnxParser": lambda *_: strict("OnnxParser"),
        "ILogger": type("ILogger", (), {"ERROR": 1, "INTERNAL_ERROR": 0, "WARNING": 2}),
    }
    if "IProgressMonitor" in known["module"]:
        classes["IProgressMonitor"] = type("IProgressMonitor", (), {})
    return SimpleNamespace(__version__=known["version"], __name__="tensorrt", **enums, **classes), log
