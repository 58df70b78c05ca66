"""Every line of this project that only a GPU can show, measured in one run, in order of worth, within a time budget.

    python benchmarks/on_gpu.py [--minutes 25] [--work FOLDER] [--weights FILE] [--pannuke FOLDER]

It ends with a table: each bar, what was measured, and MET, MISSED or NOT RUN with the reason; the same, with the
machine, versions and all results, is written to benchmarks/results/on_gpu.json after every group of steps. Ctrl-C
leaves what is measured. The same command with the same ``--work`` goes on where it stopped: what was done from the same
files, code, machine and versions is kept. docs/measure-on-a-gpu.md says what is measured.

``--tensorrt-python`` names another Python that has TensorRT, where PyTorch's has not: TensorRT 8.6 ends with Python
3.10. It may be a script that sets library paths first. Exit code: 0 no bar missed, 1 one missed, 3 no GPU, 130
interrupted.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bars import BARS, Verdict, verdict_on
from evidence import ROOT, evidence, portable, write_json
from gpu_plan import plan
from gpu_site import Site
from probe import Python
from stepwise import Budget, Conductor, Found, Step, Wave
from unetsharp import machine

ROOTS = ("engines", "trainer", "toolkit", "tests", "benchmarks")
PROBE_S = 120


def main(words: Sequence[str] | None = None) -> int:
    """Measure, and return the exit code."""
    arguments = parser().parse_args(words)
    budget = Budget(arguments.minutes)
    gpus = machine.gpus()
    if not gpus:
        print("no NVIDIA GPU with its driver is here: run this on a machine that has one", file=sys.stderr)
        return 3
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **surroundings(work)}
    site = site_of(arguments, work, environment)
    conductor = Conductor(work=work, machine=facts_of(site, gpus[0]), budget=budget, environment=environment, say=say)
    say(f"{gpus[0].name}, driver {machine.driver_version()}; {arguments.minutes:g} minutes; files in {work}")
    interrupted = conducted(conductor, plan(site), arguments.out)
    verdicts = verdicts_of(conductor)
    print(table(verdicts), *slowest_kinds(Found(work, conductor.outcomes).json("layers")), sep="\n")
    print(f"Logs: {work / 'logs'}; results: {arguments.out}")
    if interrupted:
        print("interrupted: the same command goes on from here")
        return 130
    return int(any(verdict.verdict == "MISSED" for verdict in verdicts))


def site_of(arguments: argparse.Namespace, work: Path, environment: dict[str, str]) -> Site:
    """Where the run takes place. SystemExit for a Python that is none."""
    main_python = probed(sys.executable, environment)
    other = arguments.tensorrt_python
    return Site(
        work=work,
        torch=main_python,
        tensorrt=probed(str(other.absolute()), environment) if other else main_python,
        weights=arguments.weights and arguments.weights.resolve(),
        pannuke=arguments.pannuke and arguments.pannuke.resolve(),
    )


def facts_of(site: Site, gpu: machine.Gpu) -> dict[str, Any]:
    """What results depend on: the GPU, its driver, the versions in both Pythons."""
    return {
        "gpu": gpu.name,
        "target": gpu.target,
        "driver": machine.driver_version(),
        "cuda": machine.cuda_version(),
        "jetson": machine.jetson_release(),
        "platform": machine.os_and_arch(),
        "python": site.torch.versions(),
        "python with TensorRT": site.tensorrt.versions(),
    }


def conducted(conductor: Conductor, waves: Sequence[Wave], out: Path) -> bool:
    """Run all; whether it was interrupted."""
    steps = [step for wave in waves for lane in wave.lanes for step in lane]

    def keep() -> None:
        try:
            write(out, conductor, steps)
        except OSError as error:  # a full disk: the table is still printed
            say(f"{out} could not be written: {error}")

    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: what runs is ended, what is measured is kept
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, signal.default_int_handler)
    try:
        asyncio.run(conductor.run(waves, keep))
    except KeyboardInterrupt:
        return True
    finally:
        keep()
    return False


def surroundings(work: Path) -> dict[str, str]:
    """Environment of every step: this repository's code, and PyTorch's compiled code kept in ``work``."""
    roots = [str(ROOT / name) for name in ROOTS]
    return {
        "PYTHONPATH": os.pathsep.join([*roots, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONUNBUFFERED": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
    }


def probed(python: str, environment: dict[str, str]) -> Python:
    """What a Python has. SystemExit where it is none."""
    command = [python, "benchmarks/probe.py"]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PROBE_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SystemExit(f"{python}: is no Python that runs here ({error})") from error
    if done.returncode:
        raise SystemExit(f"{python}: is no Python that runs here: {done.stderr.strip()}")
    return Python(path=python, **json.loads(done.stdout.splitlines()[-1]))


def verdicts_of(conductor: Conductor) -> list[Verdict]:
    """On every bar, by what has run."""
    found = Found(conductor.work, conductor.outcomes)
    return [verdict_on(bar, found) for bar in BARS]


def table(verdicts: Sequence[Verdict]) -> str:
    """For people; reasons, which many lines have in common, come below."""
    reasons = list(dict.fromkeys(v.reason for v in verdicts if v.reason))
    notes = {reason: f"({number})" for number, reason in enumerate(reasons, 1)}
    rows = [(v.verdict, v.name, v.wanted, v.measured or notes[v.reason]) for v in verdicts]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows
    ]
    counts = [f"{sum(v.verdict == name for v in verdicts)} {name}" for name in ("MET", "MISSED", "NOT RUN")]
    return "\n".join([*lines, *(f"{note} {reason}" for reason, note in notes.items()), ", ".join(counts)])


def slowest_kinds(layers: Any) -> list[str]:
    """Where the engines' time goes, if the step ``layers`` told: a line an engine."""
    lines = []
    for name, entry in layers["engines"].items() if layers else ():
        kinds = [f"{kind} {told['ms']:.2f} ms ({told['layers']})" for kind, told in [*entry["by_kind"].items()][:6]]
        lines.append(f"{name}, batch {layers['batch']}: {', '.join(kinds)}")
    return lines


def write(out: Path, conductor: Conductor, steps: Sequence[Step]) -> None:
    """All that is known so far, without paths of this machine."""
    found = Found(conductor.work, conductor.outcomes)
    content: dict[str, Any] = {
        **evidence("what only a GPU can show", (), ("engines", "toolkit", "trainer", "benchmarks")),
        "machine": dict(conductor.machine),
        "bars": [verdict._asdict() for verdict in verdicts_of(conductor)],
        "steps": [
            {"name": step.name, "command": portable(list(step.command)), **asdict(found.outcome(step.name))}
            for step in steps
        ],
        "results": {step.name: result for step in steps if (result := found.json(step.name)) is not None},
    }
    text = json.dumps(content, ensure_ascii=False)
    for path, name in ((conductor.work, "WORK"), (ROOT, "."), (Path.home(), "~")):
        if path.name:  # a home that is the root would be found in every word with a slash
            text = text.replace(str(path), name)
    write_json(out, json.loads(text))


def say(line: str) -> None:
    """Tell one line at once."""
    print(line, flush=True)


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--minutes", type=float, default=25, help="time for all; a Jetson needs several times as much")
    made.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "unetsharp-on-gpu", help="folder for all files"
    )
    made.add_argument("--weights", type=Path, help="trained weights; without, random ones of the paper's configuration")
    made.add_argument("--pannuke", type=Path, help="PanNuke folder, to train on; give ten minutes more")
    made.add_argument("--tensorrt-python", type=Path, metavar="PATH", help="the Python that has TensorRT")
    made.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "on_gpu.json", help="JSON to write")
    return made


if __name__ == "__main__":
    raise SystemExit(main())
