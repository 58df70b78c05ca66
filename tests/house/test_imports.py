"""The architecture's rules, read from the code: who may import whom, and what loads when."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {"unetsharp": "toolkit", "unetsharp_trainer": "trainer", "unetsharp_engines": "engines"}

MAY_IMPORT = {
    "unetsharp": {"unetsharp", "unetsharp_trainer", "unetsharp_engines"},
    "unetsharp_trainer": {"unetsharp_trainer", "unetsharp_engines"},
    "unetsharp_engines": {"unetsharp_engines"},
}

TORCH_PACKAGES = ("unetsharp_trainer.network", "unetsharp_trainer.training")
"""The packages that define torch modules and so need torch to be imported; nothing may import them at module level."""

TRAINING = ["torch", "torchvision", "timm", "albumentations", "torchstain", "adabound", "matplotlib", "tensorboard"]
DEPLOYMENT = ["safetensors", "onnxscript", "onnxsim", "tensorrt", "tensorrt_rtx", "pycuda", "cuda", "openslide"]
OPTIONAL = [*TRAINING, *DEPLOYMENT, "cv2"]


def modules() -> Iterator[tuple[str, Path]]:
    for package, root in SOURCES.items():
        for path in sorted((ROOT / root / package).rglob("*.py")):
            parts = path.relative_to(ROOT / root).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""


def module_level_imports(tree: ast.Module) -> Iterator[str]:
    """Names imported when the module itself is imported (not in functions, not for type checking only)."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imported_names(node)
        else:
            pending.extend(ast.iter_child_nodes(node))


def is_within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == p or name.startswith(p + ".") for p in packages)


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_go_one_way(module: str, path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = module.split(".")[0]
    seen = {name.split(".")[0] for name in imported_names(tree)} & set(SOURCES)
    assert seen <= MAY_IMPORT[own], f"{module} imports {seen - MAY_IMPORT[own]}; toolkit → trainer → engines only"
    if own == "unetsharp_engines":
        assert "torch" not in {name.split(".")[0] for name in imported_names(tree)}, "engines is free of torch"
    if not is_within(module, TORCH_PACKAGES):
        torch_users = {name for name in module_level_imports(tree) if is_within(name, TORCH_PACKAGES)}
        assert not torch_users, f"{module} imports {torch_users} at module level, not where it runs"


IMPORT_ALL_BARE = """
import importlib, importlib.abc, sys
blocked = {blocked!r}
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"blocked for this test: {{name}}", name=name)
sys.meta_path.insert(0, Blocker())
for name in {names!r}:
    importlib.import_module(name)
"""


def test_every_module_imports_without_optional_packages() -> None:
    names = [name for name, _ in modules() if not is_within(name, TORCH_PACKAGES) and not name.endswith("__main__")]
    assert len(names) > 20
    code = IMPORT_ALL_BARE.format(blocked=set(OPTIONAL), names=names)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_unetsharp_loads_nothing_heavy() -> None:
    heavy = {"numpy", "onnx", "onnxruntime", "skimage", "scipy", "PIL", "rich", *OPTIONAL}
    code = f"import sys, unetsharp, unetsharp.cli; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
