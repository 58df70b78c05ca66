"""Where a run on a GPU takes place, and the kinds of commands that its steps give there."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import devnull
from pathlib import Path

from evidence import ROOT
from probe import Python
from stepwise import Step

__all__ = [
    "ASSETS",
    "BENCHMARKS",
    "ENGINES",
    "EXPORT",
    "NETWORK",
    "NETWORK_ON_GPU",
    "ON_GPU",
    "TOOLKIT",
    "TRAINER",
    "Site",
    "pytest",
    "script",
    "user_command",
]

ENGINES, TOOLKIT, TRAINER = (ROOT / "engines", ROOT / "toolkit", ROOT / "trainer")
ASSETS = TOOLKIT / "unetsharp" / "assets"
BENCHMARKS, TESTS = ROOT / "benchmarks", ROOT / "tests"

ON_GPU = ("pycuda.driver", "cuda.bindings.driver", "cuda.bindings.nvrtc")
NETWORK = ("torch", "timm", "safetensors")
NETWORK_ON_GPU = (*NETWORK, "torch.cuda")
EXPORT = (*NETWORK, "onnx", "onnxscript", "onnxsim", "onnxruntime")
COMMAND = ("typer", "rich", "onnx")
"""Modules by what needs them: kernels, PyTorch's network, that on the GPU, its export, the command line."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a run takes place."""

    work: Path
    torch: Python
    """The Python with PyTorch."""
    tensorrt: Python
    """The Python with TensorRT; mostly the same."""
    weights: Path | None = None
    """Of the network to measure; without, random ones of the paper's configuration."""
    pannuke: Path | None = None
    """To train on."""

    @property
    def kernels(self) -> Python:
        """The Python that runs what needs the GPU alone."""
        return self.torch if not self.torch.lacking(*ON_GPU) else self.tensorrt


def script(python: Python, name: str, *words: str | Path) -> tuple[str, ...]:
    """The command that runs a script of this folder."""
    return (python.path, f"benchmarks/{name}.py", *map(str, words))


def pytest(site: Site, name: str, python: Python, *files: str, needs: Sequence[str] = ON_GPU) -> Step:
    """The tests of ``files`` that are marked ``gpu``, without this project's own settings and plugins."""
    result = site.work / f"{name}.xml"
    options = ("-c", devnull, "--rootdir", ".", "--import-mode=importlib", "-p", "no:cacheprovider", "-q", "--tb=short")
    return Step(
        name=name,
        command=(python.path, "-m", "pytest", *options, "-m", "gpu", f"--junitxml={result}", *files),
        limit_s=240,
        uses=(ENGINES, TOOLKIT, TESTS / "support", *(ROOT / file for file in files)),
        writes=(result,),
        lacking=python.lacking(*needs, "pytest"),
    )


def user_command(
    site: Site,
    name: str,
    words: Sequence[str | Path],
    options: Sequence[str | Path],
    *,
    limit_s: float,
    reads: tuple[Path, ...] = (),
    writes: tuple[Path, ...] = (),
) -> Step:
    """A command as a user gives it."""
    return Step(
        name=name,
        command=(site.tensorrt.path, "-m", "unetsharp", *map(str, (*words, *options))),
        limit_s=limit_s,
        reads=reads,
        uses=(ENGINES, TOOLKIT),
        writes=writes,
        lacking=site.tensorrt.lacking("tensorrt", *ON_GPU, *COMMAND, "onnxruntime", "skimage", "PIL"),
    )
