"""The report as JSON takes it: every number beside its unit, and what it was got with."""

import math
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from unetsharp.model_files import MANIFEST
from unetsharp.validate.assessment import Change, StepResult
from unetsharp.validate.bootstrap import LEVEL, RESAMPLES, Estimate
from unetsharp.validate.chain import Step
from unetsharp.validate.gates import Gate
from unetsharp.validate.measures import PAIR_QUANTITIES, STEP_QUANTITIES
from unetsharp.validate.observing import NotRun
from unetsharp.validate.validation import Validation
from unetsharp.validate.words import caveats, headline, summary
from unetsharp_engines import __version__
from unetsharp_engines.files import sha256_of

__all__ = ["SCHEMA", "circumstances_of", "record_of"]

SCHEMA = 1
"""Version of the JSON's layout: names stay within one, and may grow."""

_PACKAGES = ("numpy", "scipy", "scikit-image", "onnx", "onnxruntime")
"""Whose versions may change a result."""

_UNITS = {quantity.key: quantity.unit for quantity in (*STEP_QUANTITIES, *PAIR_QUANTITIES)}


def record_of(validation: Validation, circumstances: Mapping[str, Any]) -> dict[str, Any]:
    """All of ``validation``; ``circumstances`` say how it came about. An undefined number is None."""
    assessment = validation.assessment
    return {
        "schema": SCHEMA,
        "verdict": assessment.verdict.value,
        "headline": headline(validation),
        "summary": summary(validation),
        "gates": [_gate(gate) for gate in assessment.gates],
        "not_gated": [{"gate": ungated.name, "reason": ungated.reason} for ungated in assessment.ungated],
        "steps": [*map(_step, assessment.steps), *map(_not_run, assessment.not_run)],
        "layers": [
            {"name": layer.name, "precision": layer.precision, "sqnr": _number(layer.sqnr_db, "dB")}
            for layer in validation.layers
        ],
        "worst_patches": [
            {
                "fold": worst.patch.fold,
                "patch": worst.patch.index,
                "tissue": worst.patch.tissue,
                "changed": _number(worst.changed, "pixels"),
                "of": _number(worst.reference.size, "pixels"),
            }
            for worst in assessment.worst
        ],
        "caveats": caveats(validation),
        "data": {
            "fold": validation.fold,
            "patches": _number(assessment.patches, "patches"),
            "indices": list(validation.indices),
            "sha256": validation.data_sha256,
            "tissues": {name: _number(count, "patches") for name, count in assessment.tissues.items()},
            "nuclei": {name: _number(count, "nuclei") for name, count in assessment.nuclei.items()},
        },
        "quantization": validation.chain.quantization,
        "network": {"name": validation.chain.info.name, "untaught": list(validation.chain.info.untaught)},
        "interval": {"level": _number(LEVEL, "share, 0 to 1"), "resamples": _number(RESAMPLES, "draws")},
        "quantities": {q.key: {"title": q.title, "unit": q.unit} for q in (*STEP_QUANTITIES, *PAIR_QUANTITIES)},
        "made": circumstances,
    }


def circumstances_of(
    root: Path, reference: Path, arguments: Mapping[str, Any], started: str, finished: str
) -> dict[str, Any]:
    """Command, times, versions, machine, and the files by hash: a bundle folder's is its manifest's."""
    return {
        "command": shlex.join(["unetsharp", *sys.argv[1:]]),
        "arguments": dict(arguments),
        "started": started,
        "finished": finished,
        "unetsharp": __version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "cores": _number(os.cpu_count() or 1, "cores"),
        "files": {
            "reference": {"path": str(reference), "sha256": sha256_of(reference)},
            "bundle": {"path": str(root), "sha256": sha256_of(root / MANIFEST if root.is_dir() else root)},
        },
    }


def _gate(gate: Gate) -> dict[str, Any]:
    return {
        "step": gate.step,
        "gate": gate.name,
        "passed": gate.passed,
        **_estimate(gate.kept, "share of the reference, 1 is no change"),
        "limit": gate.limit,
        "certainty": gate.certainty,
    }


def _step(result: StepResult) -> dict[str, Any]:
    ran = result.ran
    return {
        **_file(ran.step),
        "state": "ran",
        "reason": "",
        "runtime": ran.runtime,
        "device": ran.device,
        "latency": _number(ran.milliseconds, "ms a patch"),
        "measures": _estimates(result.measures),
        "against_reference": _change(result.against_reference),
        "against_previous": _change(result.against_previous),
    }


def _not_run(not_run: NotRun) -> dict[str, Any]:
    nothing = dict.fromkeys(("runtime", "device", "latency", "measures", "against_reference", "against_previous"))
    return {**_file(not_run.step), "state": "NOT RUN", "reason": not_run.reason, **nothing}


def _file(step: Step) -> dict[str, Any]:
    return {
        "key": step.key,
        "title": step.title,
        "precision": step.precision,
        "origin": step.origin,
        "sha256": step.sha256,
        "size": _number(step.size, "bytes"),
    }


def _change(change: Change | None) -> dict[str, Any] | None:
    if change is None:
        return None
    return {
        "earlier": change.earlier,
        "differences": _estimates(change.differences),
        "kept": {key: _estimate(e, "share of the earlier, 1 is no change") for key, e in change.kept.items()},
        "pair": _estimates(change.pair),
    }


def _estimates(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {key: _estimate(estimate, _UNITS[key]) for key, estimate in estimates.items()}


def _estimate(estimate: Estimate, unit: str) -> dict[str, Any]:
    ends = None if estimate.low is None or estimate.high is None else [estimate.low, estimate.high]
    return {**_number(estimate.value, unit), "interval": ends and [_finite(end) for end in ends]}


def _number(value: float, unit: str) -> dict[str, Any]:
    """A number and its unit; where JSON has none for it, None and a note."""
    said: dict[str, Any] = {"value": _finite(value), "unit": unit}
    if said["value"] is None:
        said["note"] = "undefined" if math.isnan(value) else "infinite"
    return said


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
