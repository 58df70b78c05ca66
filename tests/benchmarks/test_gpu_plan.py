"""Every command of a run on a GPU is one that its program takes, and the steps hand their files to each other."""

import argparse
import dataclasses
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import rewrites_tensorrt
from bars import BARS
from evidence import ROOT
from gpu_plan import FIRST, FURTHER, plan
from gpu_site import Site
from probe import MODULES, Python
from stepwise import Step
from unetsharp.cli.app import app

MARK = "pytest.mark." + "gpu"
WORK, WEIGHTS = Path("/work-folder"), Path("/trained.safetensors")


def having(*, without: tuple[str, ...] = (), path: str = "/usr/bin/python3") -> Python:
    """A Python that has everything but ``without``."""
    modules = {name: {"error": "it is not there"} if name in without else {"version": "11.4"} for name in MODULES}
    return Python(path=path, version="3.12.0", modules=modules)


def steps_of(site: Site) -> list[Step]:
    return [step for wave in plan(site) for lane in wave.lanes for step in lane]


EVERY = steps_of(Site(work=WORK, torch=having(), tensorrt=having(), weights=WEIGHTS, pannuke=Path("/pannuke")))


@pytest.fixture(autouse=True)
def _sanitizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path=None: f"/usr/local/cuda/bin/{name}")


def named(steps: list[Step], name: str) -> Step:
    (found,) = [step for step in steps if step.name == name]
    return found


@pytest.mark.parametrize("step", EVERY, ids=lambda step: step.name)
def test_its_program_takes_the_command(step: Step) -> None:
    words = list(step.command)
    if "compute-sanitizer" in words[0] or not words[0]:
        assert words[1] == "--tool" and words[3:7] == ["--target-processes", "all", "--error-exitcode", "1"]
        words = words[7:]
    python, program, *rest = words
    assert python == "/usr/bin/python3"
    if program.startswith("benchmarks/"):
        assert parsed(program, rest)
    elif rest[0] == "unetsharp":
        command = typer.main.get_command(app).commands[rest[1]]  # type: ignore[attr-defined]
        command.make_context(rest[1], rest[2:])
    elif rest[0] == "pytest":
        files = [word for word in rest if word.startswith("tests/")]
        assert files and all(MARK in (ROOT / file).read_text() for file in files)
    else:
        assert program == "-c"
        compile(rest[0], step.name, "exec")


def parsed(program: str, words: list[str]) -> argparse.Namespace:
    module = importlib.import_module(Path(program).stem)
    parser: argparse.ArgumentParser = module.parser()
    return parser.parse_args(words)


def test_names_are_of_one_step_each() -> None:
    assert len({step.name for step in EVERY}) == len(EVERY)


def test_every_file_that_is_read_is_there_or_was_written_before() -> None:
    written = {WEIGHTS}
    for step in EVERY:
        unknown = [path for path in step.reads if path not in written and not path.exists()]
        assert not unknown, f"{step.name} reads {unknown}, which no step before it writes"
        written |= set(step.writes)
    in_the_repository = [path for step in EVERY for path in step.uses if path.is_relative_to(ROOT)]
    assert in_the_repository and all(path.exists() for path in in_the_repository)


def test_no_step_beside_another_writes_what_it_reads() -> None:
    for wave in plan(Site(work=WORK, torch=having(), tensorrt=having())):
        for lane in wave.lanes:
            mine = {path for step in lane for path in (*step.reads, *step.uses)}
            others = [step for other in wave.lanes if other is not lane for step in other]
            assert not mine & {path for step in others for path in step.writes}


def test_what_is_timed_is_alone_or_takes_turns() -> None:
    timed = ("cuda_kernels", "engines-", "torch-", "stages", "overlap", "latencies", "chain-", "race-", "endurance")
    for wave in plan(Site(work=WORK, torch=having(), tensorrt=having())):
        if any(step.name.startswith(timed) for lane in wave.lanes for step in lane):
            assert len(wave.lanes) == 1 or (wave.takes_turns and all(len(lane) == 1 for lane in wave.lanes))


def test_every_bar_is_shown_by_a_step() -> None:
    shown = {step for bar in BARS for step in bar.steps}
    assert shown <= {step.name for step in EVERY}
    assert {step.name for step in EVERY if step.name.startswith("tests-")} <= shown


def test_every_set_of_rewrites_is_built_and_timed() -> None:
    assert sorted((*FIRST, *FURTHER)) == sorted(rewrites_tensorrt.sets())
    assert {f"build-{name}" for name in rewrites_tensorrt.sets()} <= {step.name for step in EVERY}


def test_every_test_that_is_marked_gpu_is_run() -> None:
    marked = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py") if MARK in path.read_text()}
    assert {word for step in EVERY for word in step.command if word.startswith("tests/")} == marked


def test_partners_find_each_other() -> None:
    """In `turns.meet` each waits for the other's name, which its step must have."""
    for name in ("first", "all"):
        for side in ("engines", "torch"):
            step = named(EVERY, f"{side}-{name}")
            assert parsed(step.command[1], list(step.command[2:])).round == name
            assert step.writes == (WORK / f"{side}-{name}.json",)


class TestWhatIsMissing:
    def lacking(self, site: Site) -> dict[str, str]:
        site = dataclasses.replace(site, pannuke=Path("/pannuke"))
        return {step.name: step.lacking for step in steps_of(site) if step.lacking}

    def test_pannuke(self) -> None:
        step = named(steps_of(Site(work=WORK, torch=having(), tensorrt=having())), "training")
        assert "--pannuke" in step.lacking

    def test_nothing(self) -> None:
        assert not self.lacking(Site(work=WORK, torch=having(), tensorrt=having()))

    def test_tensorrt(self) -> None:
        python = having(without=("tensorrt",))
        lacking = self.lacking(Site(work=WORK, torch=python, tensorrt=python))
        assert (
            "tensorrt does not load in /usr/bin/python3 (it is not there); pip install 'unetsharp[gpu]'"
            in (lacking["build-plain"])
        )
        assert {"engines-first", "stages", "race-engine", "user-build", "tests-runtime", "placements"} <= set(lacking)
        assert not {"cuda_kernels", "memcheck", "tests-kernels", "torch-first", "race-torch", "export"} & set(lacking)

    def test_pytorch(self) -> None:
        python = having(without=("torch",))
        lacking = self.lacking(Site(work=WORK, torch=python, tensorrt=python))
        assert {"network", "export", "torch-first", "race-torch", "tests-torch"} <= set(lacking)
        assert not {"cuda_kernels", "user-build", "user-validate", "build-plain", "engines-first"} & set(lacking)
        validate = named(steps_of(Site(work=WORK, torch=python, tensorrt=python)), "user-validate")
        assert any(word.endswith("edge.onnx") for word in validate.command), "the reference without PyTorch"

    def test_a_pytorch_without_the_gpu_still_exports(self) -> None:
        python = having(without=("torch.cuda",))
        lacking = self.lacking(Site(work=WORK, torch=python, tensorrt=python))
        assert {"torch-first", "race-torch", "tests-torch", "compile-64", "training"} <= set(lacking)
        assert not {"network", "export", "engines-first"} & set(lacking)

    def test_the_sanitizer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("shutil.which", lambda name, path=None: None)
        lacking = self.lacking(Site(work=WORK, torch=having(), tensorrt=having()))
        assert set(lacking) == {"memcheck", "racecheck"}

    def test_a_tensorrt_that_takes_plugins(self) -> None:
        old = having()
        old.modules["tensorrt"]["version"] = "10.3.0"
        (lacking,) = self.lacking(Site(work=WORK, torch=having(), tensorrt=old)).items()
        assert lacking == (
            "build-tail-less-deep-one-kernel",
            "TensorRT 10.3.0 takes no kernel of ours into an engine; from 10.9 on it does",
        )

    def test_two_pythons_each_run_what_they_can(self) -> None:
        without_torch = ("torch", "torch.cuda", "timm", "safetensors", "onnxscript", "onnxsim")
        old = having(path="/opt/python3.10", without=without_torch)
        new = having(path="/usr/bin/python3", without=("tensorrt", "pycuda.driver"))
        site = Site(work=WORK, torch=new, tensorrt=old)
        assert not self.lacking(site)
        assert {step.name for step in steps_of(site) if old.path in step.command} == set(of_tensorrt())


def of_tensorrt() -> Iterator[str]:
    """Steps that the Python with TensorRT runs; with them the kernels', where the other has no PyCUDA."""
    yield from ("tests-kernels", "memcheck", "racecheck", "cuda_kernels", "labelled", "tests-runtime", "placements")
    yield from ("tests-bundles", "tests-plugin")
    yield from (f"build-{name}" for name in (*FIRST, *FURTHER))
    yield from ("engines-first", "engines-all", "layers", "stages", "overlap", "latencies", "race-engine", "endurance")
    yield from ("user-build", "user-infer", "user-validate", "user-bench")


def test_the_steps_that_need_no_gpu_leave_what_the_others_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = ROOT / "toolkit" / "unetsharp" / "assets" / "edge.safetensors"
    steps = steps_of(Site(work=tmp_path, torch=having(), tensorrt=having(), weights=weights))
    for name in ("network", "export", "labelled"):
        step = named(steps, name)
        if step.command[1] == "-c":
            monkeypatch.setattr(sys, "argv", ["-c", *step.command[3:]])
            exec(step.command[2], {})
        else:
            arguments = parsed(step.command[1], list(step.command[2:]))
            arguments.function(arguments)
        assert all(path.is_file() for path in step.writes), name
