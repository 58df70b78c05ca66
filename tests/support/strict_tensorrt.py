"""TensorRT modules that build nothing, and refuse what the real ones refuse: names, arguments, types of arguments.

``tensorrt_interfaces/`` holds what the bindings of each version offer, read off them by `read_tensorrt_interfaces`.
"""

import enum
import inspect
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

__all__ = ["FILES", "VERSIONS", "Interface", "Strict", "strict_tensorrt"]

FILES = {path.stem: path for path in Path(__file__).with_name("tensorrt_interfaces").glob("*.json")}

VERSIONS = sorted(FILES)
"""``tensorrt 8.6``, ``tensorrt-rtx 1.7`` and so on."""

_PLAIN: dict[str, Any] = {"int": int, "bool": bool, "str": str, "float": float, "buffer": bytes}
_ANSWERS: dict[str, Any] = {"int": 0, "bool": True, "str": "", "float": 0.0, "IHostMemory": b""}
_UNANSWERED = object()
_SEVERITIES = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")

Log = list[tuple[str, Any]]


class Interface:
    """What one version offers, and ``doubles``: by class what makes the object that answers for it."""

    def __init__(self, which: str, doubles: Mapping[str, Callable[..., Any]]) -> None:
        recorded = json.loads(FILES[which].read_text("utf-8"))
        self.version: str = recorded["version"]
        self.classes: dict[str, dict[str, Any]] = recorded["classes"]
        self.enums: dict[str, Any] = {
            name: enum.IntEnum(name, members, start=0)  # type: ignore[misc]  # members are known at run time only
            for name, members in recorded["enums"].items()
        }
        self.doubles = doubles
        self.log: Log = []

    def call(self, of: str, name: str, arguments: tuple[Any, ...], named: dict[str, Any], answer: Any) -> Any:
        """``answer`` to a call that one of the recorded signatures accepts. Raises TypeError for any other call."""
        for signature in map(self._signature, self.classes[of][name]):
            try:
                bound = signature.bind(*arguments, **named).arguments
            except TypeError:
                continue
            if all(self.fits(value, signature.parameters[known].annotation) for known, value in bound.items()):
                self.log.append((name, tuple(bound.values())))
                value = answer(*arguments, **named) if answer else _UNANSWERED
                return self.given(signature.return_annotation, value)
        accepted = " or ".join(self.classes[of][name])
        raise TypeError(f"{of}.{name} of TensorRT {self.version} takes {accepted}, not {arguments} {named}")

    def fits(self, value: Any, kind: str) -> bool:
        """Whether pybind11 takes ``value`` for a ``kind``; kinds that are not recorded take all."""
        if kind in self.enums:
            return isinstance(value, self.enums[kind])
        if kind in self.classes:
            return getattr(type(value), "stands_for", None) == kind or getattr(value, "_of", None) == kind
        if kind == "Dims":
            return all(isinstance(side, int) for side in value)
        return isinstance(value, _PLAIN.get(kind, object))

    def given(self, kind: str, value: Any) -> Any:
        """``value`` as a ``kind``, as bindings give it; where nothing answered, what stands for a ``kind``."""
        if value is _UNANSWERED and kind in self.enums:
            return next(iter(self.enums[kind]))
        if value is _UNANSWERED and kind in self.classes and kind not in _ANSWERS:
            return Strict(self, kind, self.doubles.get(kind, lambda: None)())
        if value is _UNANSWERED:
            return _ANSWERS.get(kind)
        if kind in self.enums and isinstance(value, str):
            return self.enums[kind][value]
        is_bare = kind in self.classes and not (value is None or isinstance(value, (Strict, bytes)))
        return Strict(self, kind, value) if is_bare else value

    def _signature(self, text: str) -> inspect.Signature:
        arguments, result = re.fullmatch(r"\((.*)\) -> (.*)", text).groups()  # type: ignore[union-attr]
        parameters = [self._parameter(part) for part in re.split(r", (?=\w+: )", arguments) if part]
        return inspect.Signature(parameters, return_annotation=result)

    def _parameter(self, text: str) -> inspect.Parameter:
        name, _, kind = text.partition(": ")
        kind, _, default = kind.partition(" = ")
        how = inspect.Parameter.POSITIONAL_ONLY if name.startswith("arg") else inspect.Parameter.POSITIONAL_OR_KEYWORD
        left_out = default or inspect.Parameter.empty
        return inspect.Parameter(name, how, default=left_out, annotation=kind)


class Strict:
    """An object of the recorded class ``of``; what is not recorded raises AttributeError, as the real one's would."""

    def __init__(self, interface: Interface, of: str, double: Any = None) -> None:
        vars(self).update(_interface=interface, _of=of, _double=double)

    def __getattr__(self, name: str) -> Any:
        interface, of, member = self._interface, self._of, self._member(name)
        if isinstance(member, list):
            answer = getattr(self._double, name, None)
            return lambda *arguments, **named: interface.call(of, name, arguments, named, answer)
        if "get" not in member:
            raise AttributeError(f"{of}.{name} of TensorRT {interface.version} cannot be read")
        return interface.given(member["get"], getattr(self._double, name, _UNANSWERED))

    def __setattr__(self, name: str, value: Any) -> None:
        kind = self._member(name)
        if isinstance(kind, list) or "set" not in kind or not self._interface.fits(value, kind["set"]):
            raise AttributeError(f"{self._of}.{name} of TensorRT {self._interface.version} takes {kind}, not {value!r}")
        self._interface.log.append((name, value))
        if self._double is not None:
            setattr(self._double, name, value)

    def _member(self, name: str) -> Any:
        recorded = self._interface.classes[self._of]
        if name not in recorded or name.startswith("_"):
            raise AttributeError(f"{self._of} of TensorRT {self._interface.version} has no {name}")
        return recorded[name]


def strict_tensorrt(which: str, **doubles: Callable[..., Any]) -> tuple[SimpleNamespace, Log]:
    """The module of ``which``, one of `VERSIONS`, and the list in which appears what its objects are told.

    ``doubles`` make what answers for objects of a class; what none answers is answered by something of the right type.
    """
    interface = Interface(which, doubles)
    classes = {name: _constructor(interface, name) for name in interface.classes if interface.classes[name]["__init__"]}
    bases = {name: _base(interface, name) for name in ("ILogger", "IProgressMonitor") if name in interface.classes}
    module = {"__version__": interface.version, "__name__": "tensorrt", **interface.enums, **classes, **bases}
    return SimpleNamespace(**module), interface.log


def _constructor(interface: Interface, of: str) -> Callable[..., Strict]:
    def make(*arguments: Any, **named: Any) -> Strict:
        double = interface.doubles.get(of, lambda *_: None)
        seen: list[Any] = []
        interface.call(of, "__init__", arguments, named, lambda *given: seen.append(double(*given)))
        return Strict(interface, of, seen[0])

    return make


def _base(interface: Interface, of: str) -> type:
    """A class to be derived from: a derived one has every method that the library calls."""
    methods = [name for name, member in interface.classes[of].items() if member and name != "__init__"]

    class Base:
        stands_for = of

        def __init_subclass__(cls) -> None:
            missing = [name for name in methods if name not in vars(cls)]
            assert not missing, f"{cls} has no {missing}, which TensorRT {interface.version} calls"

    if of == "ILogger":
        severity = enum.IntEnum("Severity", list(_SEVERITIES), start=0)
        Base.Severity = severity  # type: ignore[attr-defined]
        for member in severity:
            setattr(Base, member.name, member)
    return Base
