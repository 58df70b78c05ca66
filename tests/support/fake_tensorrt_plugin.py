"""``tensorrt.plugin`` made of numbers: TensorRT's builder for one plugin compiled ahead of time, without TensorRT.

``tensorrt_plugin_interface.json`` holds the public names of the real module and their parameters, as `interface_of`
read them off the bindings of 10.9, 10.13, 11.0 and 11.4, which are alike. What is not there, this module lacks.
"""

import inspect
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

INTERFACE: dict[str, list[str]] = json.loads(
    Path(__file__).with_name("tensorrt_plugin_interface.json").read_text("utf-8")
)
_INPUTS = ("taps", "scale", "shift")


def interface_of(plugin: Any) -> dict[str, list[str]]:
    """Public names of a real ``tensorrt.plugin``, and their parameters: what is recorded."""
    functions = {name: getattr(plugin, name) for name in sorted(plugin.__all__)}
    return {name: list(inspect.signature(f).parameters) if callable(f) else [] for name, f in functions.items()}


class Expression:
    """A side of a tensor, or what is computed of sides."""

    def __init__(self, value: "int | Expression") -> None:
        assert type(value) in (int, Expression), f"TensorRT computes with no {type(value)}"
        self.value: int = value.value if isinstance(value, Expression) else value

    def __mul__(self, other: "int | Expression") -> "Expression":
        return Expression(self.value * Expression(other).value)

    def __floordiv__(self, other: "int | Expression") -> "Expression":
        return Expression(self.value // Expression(other).value)


class TensorDesc:
    """What a plugin's functions are told of a tensor."""

    def __init__(self, shape_expr: Iterable[Any], dtype: str, layout: str = "LINEAR") -> None:
        self.shape_expr = [Expression(side) for side in shape_expr]
        self.shape = [side.value for side in self.shape_expr]
        self.dtype, self.format = dtype, layout


class KernelLaunchParams:
    """Grid, block and shared memory."""

    def __init__(self, **named: "int | Expression") -> None:
        self.numbers = dict.fromkeys(INTERFACE["KernelLaunchParams"], 1) | {"shared_mem": 0}
        self.numbers |= {name: Expression(value).value for name, value in named.items()}
        assert list(self.numbers) == INTERFACE["KernelLaunchParams"]


class SymIntExprs(list[Expression]):
    """Numbers that are handed to the kernel between inputs and outputs."""

    @classmethod
    def from_tuple(cls, expressions: Iterable[Expression]) -> "SymIntExprs":
        return cls(expressions)


class AutoTuneCombination(list[tuple[str, str]]):
    """Type and layout of each input and output."""

    def __init__(self, io_types: str, layouts: str) -> None:
        super().__init__(zip(io_types.split(", "), layouts.split(", "), strict=True))


@dataclass(frozen=True, kw_only=True)
class Built:
    """What an engine would hold of the plugin."""

    sides: tuple[int, ...]
    """Of its output."""
    kernel: str
    ptx: bytes
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    between: tuple[int, ...]
    """The kernel's whole numbers, which stand between its inputs and its output."""


class FakeBuilder:
    """Holds what was registered, as ``namespace::name`` → role → function."""

    def __init__(self) -> None:
        self.registered: dict[str, dict[str, Callable[..., Any]]] = {}

    def install(self, patch: pytest.MonkeyPatch) -> SimpleNamespace:
        """Be what ``import tensorrt.plugin`` finds; returns ``tensorrt``."""
        plugin: Any = ModuleType("tensorrt.plugin")
        offered: dict[str, Any] = {
            "TensorDesc": TensorDesc,
            "KernelLaunchParams": KernelLaunchParams,
            "SymIntExprs": SymIntExprs,
            "SymInt32": Expression,
            "AutoTuneCombination": AutoTuneCombination,
            "cdiv": lambda first, second: Expression(-(-first.value // Expression(second).value)),
            "from_shape_expr": lambda shape_expr, dtype: TensorDesc(shape_expr, dtype),
            **{role: self._decorator(role) for role in ("register", "autotune", "aot_impl")},
        }
        assert set(offered) <= set(INTERFACE)
        vars(plugin).update(offered)
        formats = SimpleNamespace(LINEAR="LINEAR", HWC8="HWC8")
        trt = SimpleNamespace(
            __version__="11.4",
            float16="FP16",
            float32="FP32",
            TensorFormat=formats,
            QuickPluginCreationRequest=object(),
        )
        trt.plugin = plugin
        patch.setitem(sys.modules, "tensorrt", trt)  # type: ignore[arg-type]
        patch.setitem(sys.modules, "tensorrt.plugin", plugin)
        return trt

    def _decorator(self, role: str) -> Callable[[str], Callable[..., Any]]:
        def of(plugin_id: str) -> Callable[..., Any]:
            known = self.registered.setdefault(plugin_id, {})
            assert role not in known, f"TensorRT refuses a second {role} of {plugin_id}"
            return lambda function: known.setdefault(role, _checked(role, function))

        return of

    def combinations(self, plugin_id: str, descs: list[TensorDesc]) -> list[AutoTuneCombination]:
        """Among which TensorRT would choose."""
        found: list[AutoTuneCombination] = self.registered[plugin_id]["autotune"](*descs, (None,))
        return found

    def build(self, plugin_id: str, taps: TensorDesc, channels: int, factors: tuple[int, int]) -> Built:
        """What the engine takes for taps so described."""
        attribute = np.array(factors, np.int32)
        descs = [taps, *(TensorDesc([channels], "FP32") for _ in range(2))]
        output = self.registered[plugin_id]["register"](*descs, attribute)
        assert output.dtype == taps.dtype
        kernel, ptx, launch, between = self.registered[plugin_id]["aot_impl"](*descs, attribute, (output,), 0)
        numbers = list(launch.numbers.values())
        assert numbers[6] == 0  # shared memory asked for at launch
        return Built(
            sides=tuple(output.shape),
            kernel=kernel,
            ptx=ptx,
            grid=tuple(numbers[:3]),  # type: ignore[arg-type]
            block=tuple(numbers[3:6]),  # type: ignore[arg-type]
            between=tuple(number.value for number in between),
        )


def _checked(role: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, if its parameters and their types are what TensorRT demands of its role."""
    expected = {
        "register": (*_INPUTS, "factors"),
        "autotune": (*_INPUTS, "outputs"),
        "aot_impl": (*_INPUTS, "factors", "outputs", "tactic"),
    }[role]
    signature = inspect.signature(function)
    assert tuple(signature.parameters) == expected
    assert all(signature.parameters[name].annotation is TensorDesc for name in _INPUTS)
    returns = {
        "register": TensorDesc,
        "autotune": list[AutoTuneCombination],
        "aot_impl": tuple[str, bytes, KernelLaunchParams, SymIntExprs],
    }[role]
    assert signature.return_annotation == returns
    return function
