"""The types by which mypy checks our calls of TensorRT say what the bindings of every recorded version accept."""

import ast
import json
from importlib.resources import files
from typing import Any

import pytest

from support.read_tensorrt_interfaces import interface_of
from support.strict_tensorrt import FILES, VERSIONS, Interface

STUB = ast.parse((files("unetsharp_engines") / "tensorrt_api.pyi").read_text("utf-8"))
CLASSES = {node.name: node for node in STUB.body if isinstance(node, ast.ClassDef) and node.name[0] != "_"}
MODULE = CLASSES.pop("TensorRt")
RECORDED = {"bytes": "buffer", "list[Dims]": "List[Dims]"}
"""Types as the bindings call them, where their names differ."""


def recorded(annotation: ast.expr | None) -> str:
    text = ast.unparse(annotation).removesuffix(" | None") if annotation else ""
    return RECORDED.get(text, text)


def members(of: str) -> list[Any]:
    return [node for node in CLASSES[of].body if getattr(node, "name", "").strip("_") != "buffer"]


def is_enum(of: str) -> bool:
    return [ast.unparse(base) for base in CLASSES[of].bases] == ["_Enum"]


@pytest.mark.parametrize("which", VERSIONS)
@pytest.mark.parametrize("of", [name for name in CLASSES if not is_enum(name)])
def test_every_version_accepts_what_the_types_allow(of: str, which: str) -> None:
    known = Interface(which, {}).classes[of]
    for node in members(of):
        if isinstance(node, ast.FunctionDef):
            check_function(node, known[node.name])
        elif isinstance(node, ast.AnnAssign):
            assert known[node.target.id]["set"] == recorded(node.annotation), node.target.id  # type: ignore[union-attr]


def check_function(node: ast.FunctionDef, known: Any) -> None:
    if node.decorator_list:
        assert known["get"] == recorded(node.returns), node.name
        return
    assert not node.args.args[1:], f"{node.name}: arguments by place alone, since versions name them differently"
    _, *given = [recorded(argument.annotation) for argument in node.args.posonlyargs or node.args.args]
    signatures = [signature.replace("list[", "List[") for signature in known]
    assert any(accepts(signature, given, recorded(node.returns)) for signature in signatures), (node.name, known)


def accepts(signature: str, given: list[str], result: str) -> bool:
    """Whether a recorded signature takes arguments of these types; the others it has can be left out."""
    arguments, _, returned = signature.rpartition(" -> ")
    wanted = [part.split(": ", 1)[1] for part in arguments[1:-1].split(", ") if part]
    needed = [kind for kind in wanted if not kind.endswith(" = ...")]
    kinds = [kind.removesuffix(" = ...") for kind in wanted]
    return returned == result and len(needed) <= len(given) and kinds[: len(given)] == given


@pytest.mark.parametrize("which", VERSIONS)
def test_every_version_has_the_members_of_enums(which: str) -> None:
    enums = Interface(which, {}).enums
    for of in filter(is_enum, CLASSES):
        named = {node.target.id for node in members(of) if isinstance(node, ast.AnnAssign)}  # type: ignore[union-attr]
        assert named - {"__members__"} <= set(enums[of].__members__), of


@pytest.mark.parametrize("which", VERSIONS)
def test_every_version_has_what_the_module_has(which: str) -> None:
    interface = Interface(which, {})
    named = {node.target.id for node in MODULE.body if isinstance(node, ast.AnnAssign)}  # type: ignore[union-attr]
    assert named <= {"__version__", *interface.classes, *interface.enums}


def test_what_is_recorded_is_what_the_bindings_say() -> None:
    """Of TensorRT-RTX, which can be here; the others were read in the same way."""
    installed = pytest.importorskip(
        "tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'unetsharp[rtx]'"
    )
    recorded = json.loads(FILES["tensorrt-rtx 1.7"].read_text("utf-8"))
    if installed.__version__ != recorded["version"]:
        pytest.skip(f"recorded is {recorded['version']}, installed {installed.__version__}")
    assert interface_of(installed) == recorded


@pytest.mark.parametrize(
    ("signature", "given", "result", "taken"),
    [
        ("(flags: int = ...) -> X", [], "X", True),
        ("(flags: int = ...) -> X", ["int"], "X", True),
        ("(flags: int = ...) -> X", ["str"], "X", False),
        ("(flags: int = ...) -> X", ["int"], "Y", False),
        ("(name: str, size: int) -> None", ["str"], "None", False),
        ("(name: str, size: int) -> None", ["str", "int", "int"], "None", False),
        ("() -> None", [], "None", True),
    ],
)
def test_what_accepting_means(signature: str, given: list[str], result: str, *, taken: bool) -> None:
    assert accepts(signature, given, result) is taken
