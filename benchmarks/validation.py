"""What INT8 made of the shipped edge weights, by ``unetsharp validate`` on a fold that no step was made with.

    OMP_NUM_THREADS=2 python benchmarks/validation.py PANNUKE --out benchmarks/results/validate_edge_int8.json

Exports the weights, quantizes them on folds 1 (scales) and 2 (which layers go back to float), as TensorRT likes INT8
and as ONNX Runtime does, bundles each ONNX and validates the bundle on fold 3, all by their commands; both are run by
ONNX Runtime. One warning: that ``minmax`` is the default method was decided on
fold 3 of the same data (quantization_methods.json), so this fold has had its say in one choice.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from evidence import ROOT, evidence, write_json

WEIGHTS = ROOT / "toolkit/unetsharp/assets/edge.safetensors"
RUNTIMES = ("tensorrt", "onnxruntime")
PROGRAM = Path(sys.executable).with_name("unetsharp")
LEFT_OUT = ("layers", "quantities", "made", "caveats", "worst_patches")
"""Of the report: long, or told by `evidence`."""
CHANGES = ("against_reference", "against_previous")
"""Of each step, left out: the gates tell what it keeps, with intervals; what else it changes follows from measures."""

CAVEAT = (
    "scales from fold 1, layers chosen on fold 2, validated on fold 3; but the default method, minmax, was chosen "
    "after it had been seen on fold 3"
)


def main() -> None:
    """Make the bundle, validate it, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="PanNuke folder with folds 1 to 3")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), "export", WEIGHTS, "-o", "edge.onnx")
        reports = {runtime: validated(Path(folder), arguments.data.resolve(), runtime) for runtime in RUNTIMES}
    result = {
        **evidence(
            "drift of the edge weights in INT8", ("torch", "onnxruntime", "onnx", "numpy"), ("engines", "toolkit")
        ),
        "caveat": CAVEAT,
        "quantized_for": reports,
    }
    write_json(arguments.out, result)
    for runtime, report in reports.items():
        print(runtime, report["headline"], report["summary"])


def validated(folder: Path, data: Path, runtime: str) -> dict[str, Any]:
    """The report on ``edge.onnx`` in ``folder``, quantized for ``runtime``; a failed gate is a result, too."""
    onnx, bundle, report = f"{runtime}.onnx", f"{runtime}-bundle", f"{runtime}-report"
    run(folder, "quantize", "edge.onnx", "-o", onnx, "--calibration", data, "--runtime", runtime)
    run(folder, "build-engine", onnx, "-o", bundle, "--runtime", "onnxruntime")
    run(folder, "validate", bundle, "--reference", WEIGHTS, "--data", data, "--report", report, accept=(0, 1))
    told: dict[str, Any] = json.loads((folder / report / "report.json").read_text(encoding="utf-8"))
    del told["data"]["indices"]
    return shortened(told)


def shortened(report: dict[str, Any]) -> dict[str, Any]:
    """The report without what is in `LEFT_OUT`, of each step its facts and the values of its measures."""
    steps = [
        {key: value for key, value in step.items() if key not in CHANGES}
        | {"measures": {key: measure["value"] for key, measure in step["measures"].items()}}
        for step in report["steps"]
    ]
    return {key: value for key, value in report.items() if key not in LEFT_OUT} | {"steps": steps}


def run(folder: Path, *command: str | Path, accept: tuple[int, ...] = (0,)) -> None:
    """Run ``unetsharp`` in ``folder``; ends this program where it ends otherwise."""
    code = subprocess.run([PROGRAM, *command], cwd=folder, check=False).returncode
    if code not in accept:
        raise SystemExit(f"unetsharp {command[0]} ended with {code}")


if __name__ == "__main__":
    main()
