"""What the graph rewrites change in TensorRT-RTX engines of the paper's configuration, without a GPU.

    python benchmarks/rtx_layers.py --out benchmarks/results/rtx_layers.json

Engines are built for each GPU and read back kernel by kernel (`unetsharp.inspection.rtx_program`): kernels launched,
bytes of activations that they read and write per image, and bytes by kind. Weights are random, which changes none of
it; INT8 scales follow a rule instead of a calibration. Arithmetic is counted from the ONNX. No engine is run: these are
bytes, not times. A rewrite alone is built for one GPU in FP16. GPUs with equal programs share a row.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch

from evidence import evidence
from unetsharp.build.builder import Plan, Profile, build_engine
from unetsharp.build.flavours import RTX, Loaded, load
from unetsharp.cli.output import Output
from unetsharp.export.precision import to_fp16
from unetsharp.export.tracing import trace
from unetsharp.inspection.layers import by_kind
from unetsharp.inspection.rtx_program import kernels_of
from unetsharp_engines.files import replacing
from unetsharp_engines.quantization import place, quantize
from unetsharp_engines.rewrites import DEFAULT, NEEDING_PLUGIN, PASSES, PORTABLE, TAIL_LESS, TYPED, rewrite
from unetsharp_engines.rewrites.graph import Graph
from unetsharp_trainer.network import UNetSharp

SIDE = 256
TARGETS = ("sm86", "sm89", "sm120")
INT8_RANGE = 8.0
"""Magnitude that INT8's 127 stands for, in every tensor."""
BEST = DEFAULT["tensorrt-rtx"]
BEST_TAIL_LESS = tuple("tailless-head-56" if name == "head-low-resolution" else name for name in BEST)
SETS: dict[str, tuple[str, ...]] = {
    "plain": (),
    **{name: (name,) for name in PASSES if name not in {"mish-by-exp", "taps-as-computed", *NEEDING_PLUGIN}},
    "portable set": PORTABLE,
    "tail-less set": TAIL_LESS,
    "mish-by-exp": (),
    "tail-less set, mish-by-exp": TAIL_LESS,
    "TensorRT-RTX's set": BEST,
    "TensorRT-RTX's set, tail-less": BEST_TAIL_LESS,
    "the same and carry-shifts": (*BEST_TAIL_LESS, "carry-shifts"),
}
TYPED_SETS = list(SETS)[-5:]
"""Those with Mish by exp, which is spelt once the tensors are float16."""


def main() -> None:
    """Build all, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--only", nargs="*", choices=SETS, default=list(SETS), help="sets of rewrites to build")
    arguments = parser.parse_args()
    start = evidence("TensorRT-RTX engines before and after rewriting", ("onnx", "torch"), ("engines", "toolkit"))
    torch.manual_seed(0)
    network, loaded = trace(UNetSharp().eval(), size=SIDE, opset=17), load(RTX)
    rows = [
        row
        for name in arguments.only
        for precision in (("fp16",) if name in PASSES else ("fp16", "int8"))
        for row in built(loaded, network, name, precision, TARGETS[:1] if name in PASSES else TARGETS)
    ]
    report = {**start, "tensorrt_rtx": loaded.version, "network": "paper's, random weights", "side": SIDE}
    with replacing(arguments.out) as temporary:
        temporary.write_text(written(report, rows), encoding="utf-8")
    print(table(rows))


def written(report: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """``report`` with its ``rows`` as JSON, each row on one line."""
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    return json.dumps({**report, "rows": []}, indent=1).replace('"rows": []', f'"rows": [\n  {lines}\n ]') + "\n"


def built(
    loaded: Loaded, network: onnx.ModelProto, name: str, precision: str, targets: Sequence[str]
) -> list[dict[str, Any]]:
    """The network with a set of rewrites, in a precision: a row for the GPUs whose programs are equal.

    None where the rewrites change nothing.
    """
    rewritten, report = rewrite(network, SETS[name])
    if name in PASSES and name != "mish-by-exp" and not any(done.sites for done in report.passes):
        return []
    converted = to_fp16(in_int8(rewritten) if precision == "int8" else rewritten)
    typed, _ = rewrite(converted, TYPED["tensorrt-rtx" if name in TYPED_SETS else "tensorrt"])
    rows: list[dict[str, Any]] = []
    for target in targets:
        begin = time.perf_counter()
        engine = build_engine(loaded, plan(typed, precision, target), Output())
        seconds = time.perf_counter() - begin
        told = {"set": name, "precision": precision, "gmacs": round(report.after.macs / 1e9, 2), **program(engine)}
        own = {target: {"build_s": round(seconds, 2), "engine_mb": round(len(engine) / 1e6, 2)}}
        if rows and {**rows[-1], "targets": {}} == {**told, "targets": {}}:
            rows[-1]["targets"].update(own)
        else:
            rows.append({**told, "targets": own})
        print(f"{name}, {precision}, {target}: {seconds:.1f} s, {told['moved_mb']} MB moved", flush=True)
    return rows


def program(engine: bytes) -> dict[str, Any]:
    """Kernels, bytes moved, and both by kind: kernels and MB."""
    layers = [vars(kernel) for kernel in kernels_of(engine)]
    kinds = by_kind(layers)
    return {
        "kernels": len(layers),
        "moved_mb": round(sum(total for _, total in kinds.values()) / 1e6, 2),
        "by_kind": {kind: [count, round(total / 1e6, 3)] for kind, (count, total) in kinds.items()},
    }


def in_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` quantized where the recipe says, all tensors with one range."""
    placement = place(Graph(model))
    return quantize(model, placement, dict.fromkeys(placement.tensors, INT8_RANGE))


def plan(model: onnx.ModelProto, precision: str, target: str) -> Plan:
    """1 to 16 tiles at once."""
    smallest, best, largest = ((n, 3, SIDE, SIDE) for n in (1, 8, 16))
    profile = Profile(min=smallest, opt=best, max=largest)
    return Plan(name="U-Net#", onnx=model.SerializeToString(), precision=precision, profile=profile, targets=(target,))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| set | precision | GPUs | GMAC | kernels | MB moved | of plain | built in |", "|" + " --- |" * 8]
    plain = {r["precision"]: r["moved_mb"] for r in rows if r["set"] == "plain"}
    for r in rows:
        share = f"{r['moved_mb'] / plain[r['precision']]:.2f}" if plain else "–"
        seconds = [own["build_s"] for own in r["targets"].values()]
        lines.append(
            f"| {r['set']} | {r['precision']} | {', '.join(r['targets'])} | {r['gmacs']:.2f} | {r['kernels']} | "
            f"{r['moved_mb']:.0f} | {share} | {min(seconds):.1f} to {max(seconds):.1f} s |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
