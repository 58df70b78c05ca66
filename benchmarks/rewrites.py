"""What each graph rewrite is worth on ONNX Runtime's CPU provider, alone and together, beside the plain export.

    OMP_NUM_THREADS=1 python benchmarks/rewrites.py --out benchmarks/results/rewrites_cpu.json

The paper's configuration has random weights, on which time does not depend; the edge configuration is what ships.
Each variant takes turns with the plain network, image by image, in an order drawn anew each round: whatever else the
machine does, it does to both. Time is the process's processor time on one thread, which leaves out waiting for
a busy core. A ratio is the plain network's time over the variant's in the same round; the median over the rounds is
reported, with its quartiles. A tail-less variant's time includes `rewrites.finish`.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from evidence import evidence, write_json
from unetsharp.cli.output import Output, Verbosity
from unetsharp_engines.contract import INPUT_NAME
from unetsharp_engines.model_info import METADATA_KEY, ModelInfo
from unetsharp_engines.rewrites import (
    DEFAULT,
    NEEDING_PLUGIN,
    PASSES,
    PORTABLE,
    TAIL_KEY,
    HeadTail,
    RewriteReport,
    finish,
    rewrite,
)

EDGE = Path(__file__).parents[1] / "toolkit" / "unetsharp" / "assets" / "edge.safetensors"
SOURCES = ("engines/unetsharp_engines/rewrites", "trainer/unetsharp_trainer/network", "benchmarks/rewrites.py")

Runner = Callable[[np.ndarray], np.ndarray]

FAST = DEFAULT["onnxruntime"]
SETS: dict[str, tuple[str, ...]] = {
    "plain again": (),
    **{name: (name,) for name in PASSES if name not in NEEDING_PLUGIN},
    "portable set": PORTABLE,
    "onnxruntime's set": FAST,
    "onnxruntime's set and merge-gates": (*FAST, "merge-gates"),
    "onnxruntime's set, tail-less": tuple("tailless-head" if n == "head-low-resolution" else n for n in FAST),
}


@dataclass
class Variant:
    """One way to run the network, and how long it took."""

    run: Runner
    report: RewriteReport
    seconds: list[float]


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=15, help="turns that each variant takes")
    parser.add_argument("--only", nargs="*", choices=SETS, default=list(SETS), help="variants to run")
    arguments = parser.parse_args()
    start = evidence("graph rewrites on the CPU, one thread, batch 1", ("onnx", "onnxruntime"), SOURCES)
    with tempfile.TemporaryDirectory() as folder:
        models = {
            name: measured(plain_export(weights, Path(folder) / f"{name}.onnx"), arguments.only, arguments.rounds)
            for name, weights in (("edge", EDGE), ("paper", paper_weights(Path(folder))))
        }
    load = round(os.getloadavg()[0], 1)
    report = {**start, "load_average_after": load, "rounds": arguments.rounds, "models": models}
    write_json(arguments.out, report)
    print("\n\n".join(table(model) for model in models.values()))


def paper_weights(folder: Path) -> Path:
    """A weights file of the paper's configuration, random."""
    import torch

    from unetsharp_trainer.network import UNetSharp, save_weights

    torch.manual_seed(0)
    network = UNetSharp().eval()
    info = ModelInfo(name="random", encoder=network.encoder_name, width=network.width, train_size=224)
    save_weights(folder / "paper.safetensors", network, info)
    return folder / "paper.safetensors"


def plain_export(weights: Path, path: Path) -> Path:
    """What ``unetsharp export --no-rewrite`` writes of ``weights``."""
    from unetsharp.export.exporter import ExportSettings, export_onnx

    export_onnx(weights, path, ExportSettings(rewrite=False), Output(verbosity=Verbosity.QUIET))
    return path


def measured(path: Path, names: Sequence[str], rounds: int) -> dict[str, Any]:
    """All variants of one model, as the JSON has them."""
    model = onnx.load(path)
    image = np.random.default_rng(0).random(input_shape(model)).astype(np.float32)
    info = ModelInfo.from_json(metadata(model)[METADATA_KEY], source=str(path))
    return {
        "model": {
            "name": info.name,
            "encoder": info.encoder,
            "width": info.width,
            "weights_sha256": info.weights_sha256,
            "input": image.shape,
        },
        "cost_before": asdict(rewrite(model, ())[1].before),
        "batchnorm_share_of_plain_time": batchnorm_share(model, image),
        "variants": {name: beside_plain(model, SETS[name], image, rounds) for name in names},
    }


def beside_plain(model: onnx.ModelProto, names: Sequence[str], image: np.ndarray, rounds: int) -> dict[str, Any]:
    """The network with the rewrites ``names``, timed beside the plain one."""
    plain, one = variant(model, ()), variant(model, names)
    difference = float(np.abs(one.run(image) - plain.run(image)).max())
    acts = not names or any(done.sites for done in one.report.passes)
    take_turns([plain, one], image, rounds if acts else 0)
    return summary(one, plain) | {"max_difference": difference}


def variant(model: onnx.ModelProto, names: Sequence[str]) -> Variant:
    """``model`` with the rewrites ``names``, ready to run."""
    rewritten, report = rewrite(model, names)
    session = onnxruntime.InferenceSession(rewritten.SerializeToString(), options())
    tail = metadata(rewritten).get(TAIL_KEY)

    def run(image: np.ndarray) -> np.ndarray:
        (output,) = session.run(None, {INPUT_NAME: image})
        return finish(output, HeadTail.from_json(tail, source="the variant")) if tail else output

    return Variant(run=run, report=report, seconds=[])


def take_turns(variants: list[Variant], image: np.ndarray, rounds: int) -> None:
    """Time each variant once a round, after one run to warm up."""
    for one in variants:
        one.run(image)
    for _ in range(rounds):
        for one in random.sample(variants, len(variants)):
            start = time.process_time()
            one.run(image)
            one.seconds.append(time.process_time() - start)


def summary(one: Variant, plain: Variant) -> dict[str, Any]:
    """What was done, what it costs, and, if it was timed, time and ratio to the plain network."""
    return {
        "passes": {p.name: {"sites": len(p.sites), "note": p.note} for p in one.report.passes},
        "gmacs": round(one.report.after.macs / 1e9, 3),
        "megabytes": round(one.report.after.bytes / 1e6, 1),
        **(timing(one.seconds, plain.seconds) if one.seconds else {}),
    }


def timing(seconds: list[float], plain: list[float]) -> dict[str, Any]:
    """Milliseconds, and the ratio to the plain network's time in the same round."""
    low, middle, high = statistics.quantiles(
        [before / after for before, after in zip(plain, seconds, strict=True)], n=4
    )
    return {
        "ms_median": round(statistics.median(seconds) * 1e3, 2),
        "ms_least": round(min(seconds) * 1e3, 2),
        "plain_ms_median": round(statistics.median(plain) * 1e3, 2),
        "ratio_to_plain": round(middle, 3),
        "ratio_quartiles": [round(low, 3), round(high, 3)],
    }


def batchnorm_share(model: onnx.ModelProto, image: np.ndarray) -> float:
    """Share of the plain network's kernel time that BatchNormalization takes: the most that constant channels, which
    would absorb those that cannot be folded, could save."""
    profiled = options()
    profiled.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        profiled.profile_file_prefix = f"{folder}/profile"
        session = onnxruntime.InferenceSession(model.SerializeToString(), profiled)
        for _ in range(4):
            session.run(None, {INPUT_NAME: image})
        events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("kernel_time")]
    norms = sum(e["dur"] for e in kernels if e["args"]["op_name"] == "BatchNormalization")
    return float(round(norms / sum(e["dur"] for e in kernels), 4))


def options() -> onnxruntime.SessionOptions:
    """ONNX Runtime's own defaults, on one thread."""
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = 1
    return chosen


def input_shape(model: onnx.ModelProto) -> list[int]:
    """The input's shape, with a batch of one."""
    _, *rest = model.graph.input[0].type.tensor_type.shape.dim
    return [1, *(d.dim_value for d in rest)]


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    """``metadata_props`` as a dictionary."""
    return {p.key: p.value for p in model.metadata_props}


def table(model: dict[str, Any]) -> str:
    """The variants that were timed, as Markdown."""
    rows = [
        f"| {name} | {v['ms_median']:.1f} | {v['ratio_to_plain']:.2f} ({v['ratio_quartiles'][0]:.2f}–"
        f"{v['ratio_quartiles'][1]:.2f}) | {v['gmacs']:.2f} | {v['megabytes']:.0f} | {v['max_difference']:.0e} |"
        for name, v in model["variants"].items()
        if "ms_median" in v
    ]
    title = f"{model['model']} BatchNorm {model['batchnorm_share_of_plain_time']:.1%} of the plain network's time"
    head = "| variant | ms | ratio (quartiles) | GMAC | MB | max difference |\n| --- | --- | --- | --- | --- | --- |"
    return "\n".join([title, head, *rows])


if __name__ == "__main__":
    main()
