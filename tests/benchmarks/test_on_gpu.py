"""`on_gpu.py` run as a person runs it, on a machine that pretends to have a GPU, with steps that pretend to measure."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from evidence import ROOT

PRETENDING = """
import sys
from pathlib import Path
import on_gpu
from probe import MODULES, Python
from stepwise import Step, Wave
from unetsharp import machine

CODES = {
    "memcheck": "print('ran every kernel', '===== ERROR SUMMARY: %s errors', sep=chr(10))",
    "overlap": "import json; open('%s/overlap.json', 'w').write(json.dumps({'2 slots': {'ratio': 1.05}}))",
    "endurance": "import time; print('started', flush=True); time.sleep(%s)",
}

def plan(site):
    values = {"memcheck": ERRORS, "overlap": site.work, "endurance": SECONDS}
    steps = [Step(name=n, command=(sys.executable, "-c", c % values[n]), limit_s=60) for n, c in CODES.items()]
    return [Wave(lanes=[[step]]) for step in steps]

ERRORS, SECONDS, *words = sys.argv[1:]
machine.gpus = lambda: (machine.Gpu(name="a pretended GPU", target="sm90", memory_bytes=1 << 30),)
modules = {name: {"version": "1"} for name in MODULES}
on_gpu.probed = lambda path, environment: Python(path=path, version="3.12.0", modules=modules)
on_gpu.plan = plan
sys.exit(on_gpu.main(words))
"""


class Person:
    def __init__(self, folder: Path) -> None:
        self.out = folder / "results" / "on_gpu.json"
        self.last_log = folder / "work" / "logs" / "endurance.log"
        self._words = ("--work", str(folder / "work"), "--out", str(self.out), "--minutes", "5")
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks")}

    def start(self, errors: int, seconds: float) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", PRETENDING, str(errors), str(seconds), *self._words]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, errors: int = 0, seconds: float = 0) -> tuple[int, str]:
        with self.start(errors, seconds) as process:
            said, _ = process.communicate(timeout=60)
        return process.returncode, said

    def verdicts(self) -> dict[str, str]:
        return {bar["name"]: bar["verdict"] for bar in self.content()["bars"] if bar["verdict"] != "NOT RUN"}

    def content(self) -> Any:
        return json.loads(self.out.read_text())


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path)


def test_it_ends_with_a_table_and_a_file(person: Person, tmp_path: Path) -> None:
    code, said = person.run()
    assert code == 0
    assert "a pretended GPU" in said and "memcheck: done in" in said
    (row,) = [line for line in said.splitlines() if "end to end over the engine alone" in line]
    assert re.fullmatch(r"MET +end to end over the engine alone +≤ 1\.10 +1\.05", row)
    assert "\n\n" not in said
    assert re.search(r"^NOT RUN +GPU tests of bundles +all pass +\(1\)$", said, re.MULTILINE)
    assert said.count("(1) the run ended before it") == 1
    assert "2 MET, 0 MISSED, " in said
    content = person.content()
    assert content["machine"]["gpu"] == "a pretended GPU" and content["commit"] and content["command"]
    assert person.verdicts() == {"compute-sanitizer memcheck": "MET", "end to end over the engine alone": "MET"}
    assert content["results"] == {"overlap": {"2 slots": {"ratio": 1.05}}}
    assert [step["state"] for step in content["steps"]] == ["done"] * 3
    assert str(tmp_path) not in person.out.read_text() and str(ROOT) not in person.out.read_text()


def test_a_bar_that_is_missed_is_its_exit_code(person: Person) -> None:
    code, said = person.run(errors=2)
    assert code == 1
    assert person.verdicts()["compute-sanitizer memcheck"] == "MISSED"
    assert "1 MET, 1 MISSED, " in said


def test_a_home_that_is_the_root_leaves_paths_as_they_are(person: Person) -> None:
    person.environment["HOME"] = "/"
    assert person.run()[0] == 0
    assert "WORK/overlap.json" in person.out.read_text()


def test_a_file_that_cannot_be_written_leaves_the_table(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file where a folder should be")
    code, said = Person(tmp_path).run()
    assert code == 0
    assert "on_gpu.json could not be written: " in said and "2 MET, 0 MISSED, " in said
    assert "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_keeps_what_is_measured_and_goes_on_from_there(person: Person, number: signal.Signals) -> None:
    with person.start(errors=0, seconds=50) as process:
        while not (person.last_log.exists() and person.last_log.read_text()):
            assert process.poll() is None, "it ended before its last step"
            time.sleep(0.05)
        process.send_signal(number)
        said, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "2 MET, 0 MISSED, " in said and "interrupted" in said
    assert [step["state"] for step in person.content()["steps"]] == ["done", "done", "failed"]
    code, said = person.run()
    assert code == 0
    assert [step["state"] for step in person.content()["steps"]] == ["kept", "kept", "done"]


def test_without_a_gpu_it_says_so_in_one_line() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "on_gpu.py")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1 and not done.stdout


def test_layers_are_told_in_a_line_an_engine() -> None:
    from on_gpu import slowest_kinds

    kinds = {"CaskConvolution": {"layers": 120, "ms": 3.14159}, "Reformat": {"layers": 4, "ms": 0.2}}
    layers = {"batch": 16, "engines": {"tail-less": {"by_kind": kinds, "slowest": []}}}
    assert slowest_kinds(layers) == ["tail-less, batch 16: CaskConvolution 3.14 ms (120), Reformat 0.20 ms (4)"]
    assert slowest_kinds(None) == []


def test_the_probe_tells_of_this_python() -> None:
    from on_gpu import probed, surroundings

    python = probed(sys.executable, {**os.environ, **surroundings(Path("work"))})
    assert python.versions()["python"] == sys.version.split()[0]
    assert python.lacking("onnx", "pytest", "rich") == ""
    assert set(python.modules["onnx"]) == {"version"}
    with pytest.raises(SystemExit, match="is no Python that runs here"):
        probed("/nowhere/python", {})
