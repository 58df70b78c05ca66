"""How long TensorRT-RTX takes to build U-Net# without a GPU, and how large the engine is.

    python benchmarks/build_rtx.py --out benchmarks/results/build_rtx.json

Weights are random: they change neither time nor size. The network goes the user's way: weights file, export, build.
Every build is one run of ``unetsharp build-engine``; ``build_s`` is TensorRT-RTX's part of it, ``command_s`` all of
it, ``load`` how many processes wanted the machine's cores meanwhile (1 is this one alone).
"""

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evidence import evidence, write_json
from unetsharp.build.bundle import open_bundle
from unetsharp.cli.output import Output, Verbosity

PROGRAM = str(Path(sys.executable).with_name("unetsharp"))

BUILDS: Sequence[tuple[str, str]] = (
    ("fp16", "sm86"),
    ("fp16", "sm86,sm89,sm120"),
    ("fp16", "sm80,sm86,sm89,sm120,sm121"),
    ("fp16", "sm75"),
    ("fp32", "sm86"),
)
"""Precision and targets."""


def exported(folder: Path, encoder: str, width: int) -> Path:
    """A U-Net# of random weights, as `unetsharp export` writes it."""
    import torch

    from unetsharp.export.exporter import ExportSettings, export_onnx
    from unetsharp_engines.model_info import ModelInfo
    from unetsharp_trainer.network import UNetSharp, save_weights

    torch.manual_seed(0)
    info = ModelInfo(name="random", encoder=encoder, width=width, train_size=224)
    save_weights(folder / "weights.safetensors", UNetSharp(encoder, width).eval(), info)
    export_onnx(
        folder / "weights.safetensors", folder / "model.onnx", ExportSettings(), Output(verbosity=Verbosity.QUIET)
    )
    return folder / "model.onnx"


def build(onnx: Path, bundle: Path, precision: str, targets: str) -> dict[str, Any]:
    """Build once; what the manifest says of it, and the whole command's time and memory."""
    arguments = ["build-engine", str(onnx), "-o", str(bundle), f"--{precision}", "--target", targets, "-q"]
    before = datetime.datetime.now(datetime.timezone.utc)
    process = subprocess.Popen([PROGRAM, *arguments, "--runtime", "tensorrt-rtx"])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}")
    seconds = (datetime.datetime.now(datetime.timezone.utc) - before).total_seconds()
    (engine,) = open_bundle(bundle).manifest.engines
    return {
        "precision": precision,
        "targets": list(engine.targets),
        "build_s": engine.seconds,
        "command_s": round(seconds, 2),
        "command_cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "load": round(os.getloadavg()[0], 1),
        "engine_mb": round(engine.file.size / 1e6, 2),
        "tensorrt_rtx": engine.version,
    }


def main() -> None:
    """Build everything in `BUILDS` ``--repeats`` times and write every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="resnext101_32x4d")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        onnx = exported(Path(name), options.encoder, options.width)
        runs = [build(onnx, Path(name) / "bundle", *what) for what in BUILDS for _ in range(options.repeats)]
        size = onnx.stat().st_size
    for run in runs:
        print(f"{run['precision']} {','.join(run['targets'])}: {run['build_s']} s, {run['engine_mb']} MB")
    result = {
        **evidence("TensorRT-RTX's time to build U-Net# without a GPU", ("torch", "onnx"), ("toolkit", "engines")),
        "network": {"encoder": options.encoder, "width": options.width, "onnx_mb": round(size / 1e6, 2)},
        "profile": "1,8,16 tiles of 256 px",
        "runs": runs,
    }
    write_json(options.out, result)


if __name__ == "__main__":
    main()
