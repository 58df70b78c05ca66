"""What the graph rewrites are worth on TensorRT, beside torch.compile, on one GPU.

    python benchmarks/rewrites_tensorrt.py export --out WORK                          weights → ONNX, one per set
    python benchmarks/rewrites_tensorrt.py build --onnx WORK/plain.onnx               ONNX → engine, beside it
    python benchmarks/rewrites_tensorrt.py time --out WORK --engines WORK/*.plan --meet torch    } side by side,
    python benchmarks/rewrites_tensorrt.py torch --out WORK --meet tensorrt                      } in turns
    python benchmarks/rewrites_tensorrt.py report WORK --out benchmarks/results/rewrites_tensorrt.json

``export`` and ``torch`` need PyTorch, ``build`` and ``time`` TensorRT, PyCUDA and cuda-bindings: these may be two
Pythons. Every form runs in FP16 and, but for eager PyTorch, from a CUDA graph. Engines and PyTorch take turns on the
GPU in one run, by a lock. ``time`` also keeps the engine inspector's layers and each layer's time. A tail-less engine
ends at the head's taps; what finishes it is not in its time.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from turns import arrive, in_turn, meet, per_image, repeats_for

INPUT = "image"
BATCHES = (1, 16, 64)
TURNS = 7
LAYERS_AT = 16
"""Batch size at which layers are profiled."""
MODES = ("eager", "reduce-overhead", "max-autotune")

Forms = dict[tuple[str, int], Callable[[int], float]]
"""By name and batch size: what runs n times and gives the milliseconds."""


def sets() -> dict[str, tuple[str, ...]]:
    """Rewrites by the name of their ONNX and engine."""
    from unetsharp_engines.rewrites import PASSES, PORTABLE, TAIL_LESS

    groups = ("groups-of-32", "groups-of-64", "groups-of-128")
    alone = (
        "aspp-centre-taps",
        "chain-pools",
        "head-low-resolution",
        "fold-batchnorm-forward",
        "merge-gates",
        "tailless-head-56",
    )
    return {
        "plain": (),
        "portable": PORTABLE,
        "head-resized": tuple("head-resized" if name == "head-low-resolution" else name for name in PORTABLE),
        "tail-less": TAIL_LESS,
        "tail-less-mish-by-exp": TAIL_LESS,
        "tail-less-deep": tuple(name for name in PASSES if name in (*TAIL_LESS, "deep-low-resolution")),
        **{f"tail-less-{name}": (*TAIL_LESS, name) for name in ("merge-gates", "carry-shifts", *groups)},
        "tail-less-shifts-64": (*TAIL_LESS, "carry-shifts", "groups-of-64"),
        **{f"only-{name}": (name,) for name in alone},
    }


def export(arguments: argparse.Namespace) -> None:
    """Write the ONNX of each set in FP16, and a picture with the logits that PyTorch gives in float32."""
    import onnx

    from unetsharp.export.precision import to_fp16
    from unetsharp.export.tracing import trace
    from unetsharp_engines.rewrites import rewrite
    from unetsharp_trainer.network import load_weights

    arguments.out.mkdir(parents=True, exist_ok=True)
    network, _ = load_weights(arguments.weights or random_weights(arguments.out))
    save_reference(network, arguments.out / "reference.npz")
    plain = trace(network, size=256, opset=17)
    for name in arguments.only or sets():
        start = time.perf_counter()
        model, report = rewrite(plain, sets()[name])
        mish = ["mish-by-exp"] * name.endswith("mish-by-exp")
        typed, _ = rewrite(to_fp16(model), [*mish, "taps-as-computed"])
        onnx.save(typed, arguments.out / f"{name}.onnx")
        print(f"{name}: {report.after.macs / 1e9:.2f} GMAC, {time.perf_counter() - start:.0f} s", flush=True)


def random_weights(folder: Path) -> Path:
    """The paper's configuration with random weights, and BatchNorm statistics of what it sees: real tiles."""
    import torch

    from unetsharp_engines.model_info import ModelInfo
    from unetsharp_trainer.network import UNetSharp, save_weights

    torch.manual_seed(0)
    network = UNetSharp().train()
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
            scale = 0.2 if name.endswith("bn3") else 1.0  # or rounding is magnified 10,000-fold
            torch.nn.init.uniform_(module.weight, 0.5 * scale, 1.5 * scale)
            torch.nn.init.uniform_(module.bias, -0.5 * scale, 0.5 * scale)
    with torch.no_grad():
        network.logits(torch.from_numpy(pictures(6)))
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # nothing near dead: float16 would magnify its rounding
                module.running_var.clamp_(min=0.1 * float(module.running_var.mean()))
    info = ModelInfo(name="random", encoder=network.encoder_name, width=network.width, train_size=224)
    save_weights(folder / "paper.safetensors", network.eval(), info)
    return folder / "paper.safetensors"


def pictures(count: int) -> Any:
    """Tiles of a real slide, turned about to make ``count``: float32 [count, 3, 256, 256], 0 to 1."""
    from unetsharp.export.comparison import sample_tiles

    tiles = sample_tiles(256).transpose(0, 3, 1, 2).astype(np.float32) / 255
    turned = [np.rot90(tiles[i % 3], i // 3, axes=(1, 2)) for i in range(count)]
    return np.ascontiguousarray(np.stack(turned))


def save_reference(network: Any, path: Path) -> None:
    """A batch of 64 pictures, and PyTorch's logits of the first two."""
    import torch

    image = pictures(max(BATCHES))
    with torch.inference_mode():
        logits = network(torch.from_numpy(image[:2])).numpy()
    np.savez(path, image=image, logits=logits)


def build(arguments: argparse.Namespace) -> None:
    """Build the ONNX files given, one after the other, with unetsharp's own builder."""
    from unetsharp.build.builder import Plan, Profile, Tuning, build_engine
    from unetsharp.build.flavours import TENSORRT, load
    from unetsharp.cli.output import Output, Verbosity
    from unetsharp_engines.errors import InputError, MissingCapabilityError

    loaded = load(TENSORRT)
    smallest, best, largest = ((n, 3, 256, 256) for n in arguments.batch)
    for path in arguments.onnx:
        start = time.perf_counter()
        print(f"{path.stem}: {loaded.label} begins", flush=True)
        plan = Plan(
            name=path.stem,
            onnx=path.read_bytes(),
            precision="fp16",
            profile=Profile(min=smallest, opt=best, max=largest),
            targets=(),
            tuning=Tuning(level=arguments.level, timing_cache=arguments.timing_cache),
        )
        try:
            engine = build_engine(loaded, plan, Output(verbosity=Verbosity.VERBOSE))
        except (InputError, MissingCapabilityError) as error:
            print(f"{path.stem}: {error}", flush=True)
            continue
        path.with_suffix(".plan").write_bytes(engine)
        print(f"{path.stem}: {len(engine) / 1e6:.1f} MB, {time.perf_counter() - start:.1f} s", flush=True)


def time_engines(arguments: argparse.Namespace) -> None:
    """Time every engine at every batch size, in turns, then profile its layers. One that fails stops no other."""
    from gpu_engine import GpuEngine, device

    arrive(arguments.out, "tensorrt")
    image = np.load(arguments.out / "reference.npz")["image"]
    runs: dict[tuple[str, int], Any] = {}
    for engine, batch in itertools.product(map(GpuEngine, arguments.engines), arguments.batches):
        try:
            runs[engine.name, batch] = runner = engine.runner(image[:batch])
        except RuntimeError as error:
            print(f"{engine.name}, batch {batch}: {error}", flush=True)
            continue
        if batch > 1:
            np.savez(arguments.out / f"{engine.name}.output.npz", output=runner.output()[:2])
    meet(arguments.out, "tensorrt", arguments.meet)
    timed({key: runner.run for key, runner in runs.items()}, arguments, arguments.out / "engines.json", device())
    layers = {}
    for (name, batch), runner in runs.items():
        if batch == LAYERS_AT:
            layers[name] = runner.layers()
            write(arguments.out / "layers.json", layers)


def time_torch(arguments: argparse.Namespace) -> None:
    """Time PyTorch in FP16, channels last: eager and compiled."""
    import torch

    from unetsharp_trainer.network import load_weights

    arrive(arguments.out, "torch")
    network, _ = load_weights(arguments.weights or arguments.out / "paper.safetensors")
    network = network.cuda().half().to(memory_format=torch.channels_last)
    image = torch.from_numpy(np.load(arguments.out / "reference.npz")["image"]).cuda().half()
    image = image.to(memory_format=torch.channels_last)
    forms: Forms = {}
    with torch.inference_mode():
        for mode in arguments.modes:
            for batch in arguments.batches:
                start = time.perf_counter()
                try:
                    forms[f"torch {mode}", batch] = torch_form(network.logits, image[:batch].clone(), mode)
                except RuntimeError as error:  # out of memory, or a compiler's
                    print(f"torch {mode}, batch {batch}: {error}", flush=True)
                print(f"torch {mode}, batch {batch}: ready in {time.perf_counter() - start:.0f} s", flush=True)
        if arguments.prepare_only:
            return
        meet(arguments.out, "torch", arguments.meet)
        timed(forms, arguments, arguments.out / "torch.json", {"torch": torch.__version__})


def torch_form(logits: Callable[[Any], Any], image: Any, mode: str) -> Callable[[int], float]:
    """A function that runs the network n times and gives milliseconds."""
    import torch

    call = logits if mode == "eager" else torch.compile(logits, mode=mode, dynamic=False)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def run(times: int) -> float:
        begin.record()
        for _ in range(times):
            call(image)
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    run(3)
    return run


def timed(
    forms: dict[tuple[str, int], Callable[[int], float]],
    arguments: argparse.Namespace,
    out: Path,
    facts: dict[str, str],
) -> None:
    """Time each form over turns that all forms take alike; after each turn write ``facts`` and the times so far."""
    milliseconds: dict[tuple[str, int], list[float]] = {key: [] for key in forms}
    repeats: dict[tuple[str, int], int] = {}
    lock = arguments.out / "gpu.lock"
    for _ in range(TURNS):
        for key, run in forms.items():
            with in_turn(lock):
                repeats[key] = repeats.get(key) or repeats_for(run)
                run(2)
                milliseconds[key].append(run(repeats[key]) / repeats[key])
        rows = [{"form": name, "batch": b, **per_image(ms, b)} for (name, b), ms in milliseconds.items()]
        write(out, {**facts, "timings": rows})
    for row in rows:
        print(f"{row['form']:32} batch {row['batch']:3} {row['ms_median']:8.3f} ms {row['images_per_s']:8.0f} images/s")


def write(path: Path, content: Any) -> None:
    """JSON."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def report(arguments: argparse.Namespace) -> None:
    """Join what ``time`` and ``torch`` wrote, judge the engines' logits, print the table."""
    from evidence import evidence

    folder = arguments.folder
    joined = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("engines", "torch")}
    rows = [*joined["engines"].pop("timings"), *joined["torch"].pop("timings")]
    plain = {row["batch"]: row["images_per_s"] for row in rows if row["form"] == "plain"}
    compiled = {
        b: max((r["images_per_s"] for r in rows if r["batch"] == b and r["form"].startswith("torch ")), default=None)
        for b in plain
    }
    for row in rows:
        row["ratio_to_plain"] = round(row["images_per_s"] / plain[row["batch"]], 3)
        row["ratio_to_best_torch"] = round(row["images_per_s"] / compiled[row["batch"]], 3)
    content = {
        **evidence("graph rewrites on TensorRT, FP16, 256²", (), ("engines", "toolkit", "benchmarks")),
        "machine": {**joined["engines"], **joined["torch"]},
        "timings": rows,
        "accuracy": accuracies(folder),
    }
    write(arguments.out, content)
    print(json.dumps(content["accuracy"], indent=1))
    for row in rows:
        print(
            f"| {row['form']} | {row['batch']} | {row['ms_median']} | {row['images_per_s']:.0f} | "
            f"{row['ratio_to_plain']} | {row['ratio_to_best_torch']} |"
        )


def accuracies(folder: Path) -> dict[str, dict[str, float]]:
    """By engine: largest difference of a logit from PyTorch's in float32, and share of pixels of the same class."""
    from unetsharp_engines.rewrites import HeadTail, finish

    wanted = np.load(folder / "reference.npz")["logits"]
    found = {}
    for path in sorted(folder.glob("*.output.npz")):
        seen = np.load(path)["output"]
        if seen.shape != wanted.shape:
            seen = finish(seen, HeadTail(classes=wanted.shape[1], factor=2, channels=seen.shape[1]))
        found[path.name.removesuffix(".output.npz")] = {
            "max_difference": float(np.abs(seen - wanted).max()),
            "largest_logit": float(np.abs(wanted).max()),
            "agreement": float((seen.argmax(axis=1) == wanted.argmax(axis=1)).mean()),
        }
    return found


def main(words: Sequence[str] | None = None) -> None:
    """One step of the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(required=True)

    def step(name: str, function: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        added = steps.add_parser(name, help=function.__doc__)
        added.set_defaults(function=function)
        return added

    export_step = step("export", export)
    export_step.add_argument("--only", nargs="*", help="sets; all by default")
    build_step = step("build", build)
    build_step.add_argument("--onnx", type=Path, nargs="+", required=True)
    build_step.add_argument("--level", type=int, default=1)
    build_step.add_argument("--batch", type=int, nargs=3, default=[1, 16, 64])
    build_step.add_argument("--timing-cache", type=Path)
    time_step = step("time", time_engines)
    time_step.add_argument("--engines", type=Path, nargs="+", required=True)
    torch_step = step("torch", time_torch)
    torch_step.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    torch_step.add_argument("--prepare-only", action="store_true", help="compile, and keep it in PyTorch's cache")
    for each in (export_step, time_step, torch_step):
        each.add_argument("--out", type=Path, required=True, help="folder for all results")
    for each in (export_step, torch_step):
        each.add_argument("--weights", type=Path, help="instead of random ones")
    for each in (time_step, torch_step):
        each.add_argument("--batches", type=int, nargs="+", default=BATCHES)
        each.add_argument("--meet", nargs="*", default=[], help="processes to wait for before timing")
    report_step = step("report", report)
    report_step.add_argument("folder", type=Path)
    report_step.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(words)
    arguments.function(arguments)


if __name__ == "__main__":
    main()
