"""The demo's steps: each is a command a user could type, told before it runs, timed, and skipped only by name."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from unetsharp.cli.build_engine import build_engine
from unetsharp.cli.export import export
from unetsharp.cli.infer import infer
from unetsharp.cli.output import Output
from unetsharp.cli.validate import validate
from unetsharp.demo.labelled import write_labelled
from unetsharp_engines.errors import MissingCapabilityError

__all__ = ["CROP_MPP", "DRIFT_FOLDER", "NUCLEI_FOLDER", "Step", "run_steps"]

CROP_MPP = 0.499
"""µm per pixel of the bundled crop, as its slide's header says."""

TARGETS = "sm86,sm89,sm120"
"""GeForce RTX 30, 40 and 50: what TensorRT-RTX builds for without a GPU."""

NUCLEI_FOLDER = "nuclei"
"""Where ``infer`` writes, under the demo's folder."""

DRIFT_FOLDER = "drift"
"""Where ``validate`` writes."""

LABELLED_FOLDER = "labelled"
"""The labelled patches that ``validate`` reads."""

_DRIFT = "Prove drift"


@dataclass(frozen=True, kw_only=True)
class Step:
    """What became of one command."""

    title: str
    command: str
    """As a user would type it."""
    seconds: float
    result: Mapping[str, Any]
    """What the command gives with ``--json``; empty if nothing of it ran."""
    skipped: str = ""
    """Why it, or a part of it, could not run on this machine, and how to make it; empty if all ran."""


class _Collector(Output):
    """An Output that keeps the command's result for the page."""

    def __init__(self, user: Output) -> None:
        super().__init__(verbosity=user.verbosity)
        self.collected: Mapping[str, Any] = {}

    def result(self, data: Mapping[str, Any], human: Any = None) -> None:
        """Keep ``data``; the demo says at its end what matters."""
        self.collected = data


def run_steps(out: Path, output: Output) -> list[Step]:
    """Export the shipped weights, build an engine, prove its drift, find the nuclei of the bundled crop, under ``out``.

    Without PyTorch the export is skipped and the shipped ONNX starts the path; without TensorRT-RTX there is no engine.
    """
    onnx, bundle, nuclei = out / "model.onnx", out / "bundle", out / NUCLEI_FOLDER
    with as_file(files("unetsharp") / "assets") as assets:
        exported = _step(
            "Export",
            f"unetsharp export {assets / 'edge.safetensors'} -o {onnx}",
            lambda sink: export(assets / "edge.safetensors", out=onnx, output=sink),
            output,
        )
        network = assets / "edge.onnx" if exported.skipped else onnx
        built = _step(
            "Build engines",
            f"unetsharp build-engine {network} -o {bundle} --fp16 --runtime tensorrt-rtx --target {TARGETS}",
            lambda sink: build_engine(network, bundle, fp16=True, runtime="tensorrt-rtx", target=TARGETS, output=sink),
            output,
        )
        drift = _drift(bundle, network if exported.skipped else assets / "edge.safetensors", built, out, output)
        model = network if built.skipped else bundle
        found = _step(
            "Find nuclei",
            f"unetsharp infer {assets / 'crop.png'} -m {model} -o {nuclei} --mpp {CROP_MPP}",
            lambda sink: infer([assets / "crop.png"], out=nuclei, model=model, mpp=CROP_MPP, output=sink),
            output,
        )
    return [exported, built, drift, found]


def _drift(bundle: Path, reference: Path, built: Step, out: Path, output: Output) -> Step:
    """Compare every step with the trained network, on six labelled patches."""
    data, report = out / LABELLED_FOLDER, out / DRIFT_FOLDER
    command = f"unetsharp validate {bundle} --reference {reference} --data {data} --report {report}"
    if built.skipped:
        return Step(title=_DRIFT, command=command, seconds=0.0, result={}, skipped="there is no engine to judge")
    write_labelled(data)
    return _step(
        _DRIFT,
        command,
        lambda sink: validate(bundle, reference=reference, data=data, report=report, output=sink),
        output,
    )


def _step(title: str, command: str, run: Callable[[Output], None], output: Output) -> Step:
    output.say(f"$ {command}")
    sink = _Collector(output)
    start = time.perf_counter()
    skipped = ""
    try:
        run(sink)
    except MissingCapabilityError as lacking:
        skipped = str(lacking)
        output.warn(f"skipped{' in part' if sink.collected else ''}: {skipped}")
    seconds = time.perf_counter() - start
    return Step(title=title, command=command, seconds=seconds, result=sink.collected, skipped=skipped)
