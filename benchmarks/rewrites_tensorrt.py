"""What the graph rewrites are worth on TensorRT, beside torch.compile and beside INT8, on one GPU.

`on_gpu.py` runs these steps, each in the Python that has what it needs (PyTorch for ``network``, ``export`` and
``torch``, TensorRT, PyCUDA and cuda-bindings for the others):

    python benchmarks/rewrites_tensorrt.py network WORK          → WORK/paper.safetensors, WORK/reference.npz
    python benchmarks/rewrites_tensorrt.py export WORK SET...    → WORK/SET.onnx, one per set of rewrites
    python benchmarks/rewrites_tensorrt.py build WORK SET        → WORK/SET.plan
    python benchmarks/rewrites_tensorrt.py torch WORK prepare    → PyTorch's cache, and WORK/compiled-MODE-BATCH
    python benchmarks/rewrites_tensorrt.py engines WORK ROUND SET...  } side by side, in turns
    python benchmarks/rewrites_tensorrt.py torch WORK ROUND           } → WORK/engines-ROUND.json, WORK/torch-ROUND.json
    python benchmarks/rewrites_tensorrt.py layers WORK SET...    → WORK/layers.json

Every form runs in FP16 (INT8 where it says so) and, but for eager PyTorch, from a CUDA graph. Engines that end at the
head's taps are timed with the kernel that makes labels of these; all others end at logits.
"""

import argparse
import itertools
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evidence import write_json
from turns import in_turn, meet, per_image, repeats_for
from work_steps import WorkSteps

BATCHES = (1, 16, 64)
TURNS = 7
LAYERS_AT = 16
"""Batch size at which layers are profiled."""
SLOWEST = 20
"""Layers told one by one."""
EAGER = "eager"
MODES = (EAGER, "reduce-overhead", "max-autotune")
PREPARE = "prepare"
"""The round that times nothing."""
INT8 = "int8"
"""The set whose tensors are quantized, by the recipe's placement."""
ONE_KERNEL = "tail-less-deep-one-kernel"
"""The set that only a TensorRT which takes plugins builds, from 10.9 on."""

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
        INT8: TAIL_LESS,
        "tail-less-deep": tuple(name for name in PASSES if name in (*TAIL_LESS, "deep-low-resolution")),
        ONE_KERNEL: tuple(name for name in PASSES if name in (*TAIL_LESS, "deep-one-kernel")),
        **{f"tail-less-{name}": (*TAIL_LESS, name) for name in ("merge-gates", "carry-shifts", *groups)},
        "tail-less-shifts-64": (*TAIL_LESS, "carry-shifts", "groups-of-64"),
        **{f"only-{name}": (name,) for name in alone},
    }


def network(arguments: argparse.Namespace) -> None:
    """Write the weights, and pictures with the logits that PyTorch gives of them in float32."""
    from unetsharp_trainer.network import load_weights

    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    if arguments.weights is None:
        random_weights(work / "paper.safetensors")
    else:
        shutil.copyfile(arguments.weights, work / "paper.safetensors")
    save_reference(load_weights(work / "paper.safetensors")[0], work / "reference.npz")


def export(arguments: argparse.Namespace) -> None:
    """Write the ONNX of each set."""
    import onnx

    from unetsharp.export.tracing import trace
    from unetsharp_engines.rewrites import rewrite
    from unetsharp_trainer.network import load_weights

    plain = trace(load_weights(arguments.work / "paper.safetensors")[0], size=256, opset=17)
    for name in arguments.names:
        start = time.perf_counter()
        model, report = rewrite(plain, sets()[name])
        onnx.save(quantized(model) if name == INT8 else in_half(name, model), arguments.work / f"{name}.onnx")
        print(f"{name}: {report.after.macs / 1e9:.2f} GMAC, {time.perf_counter() - start:.0f} s", flush=True)


def in_half(name: str, model: Any) -> Any:
    """``model`` in FP16."""
    from unetsharp.export.precision import to_fp16
    from unetsharp_engines.rewrites import rewrite

    mish = ["mish-by-exp"] * name.endswith("mish-by-exp")
    return rewrite(to_fp16(model), [*mish, "taps-as-computed"])[0]


def quantized(model: Any) -> Any:
    """``model`` with Q/DQ pairs where the recipe puts them, in float32; their scales are of a few pictures."""
    from unetsharp_engines.quantization import Calibration, place, quantize, threshold
    from unetsharp_engines.rewrites.graph import Graph

    placement = place(Graph(model))
    calibration = Calibration(model, placement.tensors)
    calibration.feed(pictures(6))
    return quantize(model, placement, {n: threshold(h, "minmax") for n, h in calibration.histograms.items()})


def random_weights(path: Path) -> None:
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
            if isinstance(module, torch.nn.BatchNorm2d) and module.running_var is not None:
                # nothing near dead: float16 would magnify its rounding
                module.running_var.clamp_(min=0.1 * float(module.running_var.mean()))
    info = ModelInfo(name="random", encoder=network.encoder_name, width=network.width, train_size=224)
    save_weights(path, network.eval(), info)


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
    """Build the engine of one set with unetsharp's own builder; kernel timings are kept from one to the next."""
    from unetsharp.build.builder import Plan, Profile, Tuning, build_engine
    from unetsharp.build.flavours import TENSORRT, load
    from unetsharp.cli.output import Output, Verbosity
    from unetsharp_engines.files import replacing

    loaded, onnx = load(TENSORRT), arguments.work / f"{arguments.name}.onnx"
    is_int8 = arguments.name == INT8
    smallest, best, largest = ((n, 3, 256, 256) for n in BATCHES)
    plan = Plan(
        name=onnx.stem,
        onnx=for_strong_typing(onnx) if is_int8 and loaded.is_strongly_typed else onnx.read_bytes(),
        precision="int8" if is_int8 else "fp16",
        profile=Profile(min=smallest, opt=best, max=largest),
        targets=(),
        tuning=Tuning(level=arguments.level, timing_cache=arguments.work / "timing.cache"),
    )
    engine = build_engine(loaded, plan, Output(verbosity=Verbosity.VERBOSE))
    with replacing(onnx.with_suffix(".plan")) as temporary:
        temporary.write_bytes(engine)
    print(f"{loaded.label}: {len(engine) / 1e6:.1f} MB")


def for_strong_typing(onnx: Path) -> bytes:
    """A quantized float32 network with the rest of its tensors in float16."""
    import onnx as library

    from unetsharp.export.precision import to_fp16

    return bytes(to_fp16(library.load(onnx)).SerializeToString())


def time_engines(arguments: argparse.Namespace) -> None:
    """Time the engines at every batch size, in turns. One that fails stops no other."""
    from gpu_engine import Engines
    from unetsharp_engines.errors import UnetSharpError

    work: Path = arguments.work
    reference = np.load(work / "reference.npz")
    image, forms, seen = reference["image"], Forms(), {}
    with Engines(engine_files(arguments)) as engines:
        for name, batch in itertools.product(engines.loaded, BATCHES):
            try:
                runner = engines.runner(name, image[:batch])
            except (UnetSharpError, RuntimeError, engines.device.cuda.Error) as error:
                engines.left_out[name] = f"batch {batch}: {error}"
                print(f"{name}, batch {batch}: {error}", flush=True)
                continue
            forms[name, batch] = runner.run
            if batch > 1:
                seen[name] = compared(runner.output()[:2], reference["logits"])
        me, partner = f"engines-{arguments.round}", f"torch-{arguments.round}"
        alone = not meet(work, me, partner)
        facts = {**engines.facts(), "alone": alone, "left_out": engines.left_out, "accuracy": seen}
        timed(forms, work, work / f"{me}.json", facts)


def engine_files(arguments: argparse.Namespace) -> list[Path]:
    """The engines of the sets asked for, those that are there."""
    paths = [arguments.work / f"{name}.plan" for name in arguments.names]
    return [path for path in paths if path.exists()]


def layers(arguments: argparse.Namespace) -> None:
    """What each layer of the engines takes, summed by the inspector's kinds, and the slowest one by one."""
    from gpu_engine import Engines

    image = np.load(arguments.work / "reference.npz")["image"][:LAYERS_AT]
    found = {}
    with Engines(engine_files(arguments)) as engines:
        for name in engines.loaded:
            every = engines.runner(name, image).layers()
            write_json(arguments.work / f"{name}.layers.json", every)
            found[name] = layer_table(every)
            write_json(arguments.work / "layers.json", {"batch": LAYERS_AT, "engines": found})
            print(name, json.dumps(found[name], indent=1), flush=True)


def layer_table(every: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Number and milliseconds of layers by kind, the slowest kind first, and the slowest layers by name."""
    kinds: dict[str, list[float]] = {}
    for layer in every:
        kinds.setdefault(layer.get("LayerType", "not told"), []).append(layer["ms"] or 0.0)
    sums = {kind: {"layers": len(times), "ms": round(sum(times), 4)} for kind, times in kinds.items()}
    slowest = sorted(every, key=lambda layer: -(layer["ms"] or 0.0))[:SLOWEST]
    return {
        "by_kind": dict(sorted(sums.items(), key=lambda item: -item[1]["ms"])),
        "slowest": [{"name": layer["Name"][:200], "ms": round(layer["ms"] or 0.0, 4)} for layer in slowest],
    }


def time_torch(arguments: argparse.Namespace) -> None:
    """Time PyTorch in FP16, channels last: eager, and as ``prepare``, a round that times nothing, has compiled it."""
    import torch

    from unetsharp_trainer.network import load_weights

    work: Path = arguments.work
    network, _ = load_weights(work / "paper.safetensors")
    network = network.cuda().half().to(memory_format=torch.channels_last)
    reference = np.load(work / "reference.npz")
    image = torch.from_numpy(reference["image"]).cuda().half().to(memory_format=torch.channels_last)
    forms: Forms = {}
    with torch.inference_mode():
        for mode, batch in torch_forms(work, arguments.round, arguments.modes):
            start = time.perf_counter()
            try:
                forms[f"torch {mode}", batch] = torch_form(network.logits, image[:batch].clone(), mode)
            except RuntimeError as error:  # out of memory, or a compiler's
                print(f"torch {mode}, batch {batch}: {error}", flush=True)
                continue
            print(f"torch {mode}, batch {batch}: ready in {time.perf_counter() - start:.0f} s", flush=True)
            if arguments.round == PREPARE:
                compiled(work, mode, batch).touch()
        if arguments.round == PREPARE:
            return
        me, partner = f"torch-{arguments.round}", f"engines-{arguments.round}"
        alone = not meet(work, me, partner)
        seen = compared(network.logits(image[:2]).float().cpu().numpy(), reference["logits"])
        timed(forms, work, work / f"{me}.json", {"torch": torch.__version__, "alone": alone, "accuracy": seen})


def torch_forms(work: Path, name: str, modes: Sequence[str]) -> list[tuple[str, int]]:
    """Modes and batch sizes of a round, the largest first. What was not compiled before would keep engines waiting."""
    every = itertools.product(modes, reversed(BATCHES))
    return [(m, b) for m, b in every if name == PREPARE or m == EAGER or compiled(work, m, b).exists()]


def compiled(work: Path, mode: str, batch: int) -> Path:
    """The file that says that PyTorch's cache holds a form."""
    return work / f"compiled-{mode}-{batch}"


def torch_form(logits: Callable[[Any], Any], image: Any, mode: str) -> Callable[[int], float]:
    """A function that runs the network n times and gives milliseconds."""
    import torch

    call = logits if mode == EAGER else torch.compile(logits, mode=mode, dynamic=False)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

    def run(times: int) -> float:
        begin.record()
        for _ in range(times):
            call(image)
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    run(3)
    return run


def timed(forms: Forms, work: Path, out: Path, facts: dict[str, Any]) -> None:
    """Time each form over turns that all forms take alike; after each turn write ``facts`` and the times so far."""
    milliseconds: dict[tuple[str, int], list[float]] = {key: [] for key in forms}
    repeats: dict[tuple[str, int], int] = {}
    for _ in range(TURNS):
        for key, run in forms.items():
            with in_turn(work):
                repeats[key] = repeats.get(key) or repeats_for(run)
                run(2)
                milliseconds[key].append(run(repeats[key]) / repeats[key])
        rows = [{"form": name, "batch": b, **per_image(ms, b)} for (name, b), ms in milliseconds.items()]
        write_json(out, {**facts, "timings": rows})
    for row in rows:
        print(f"{row['form']:32} batch {row['batch']:3} {row['ms_median']:8.3f} ms {row['images_per_s']:8.0f} images/s")


def compared(output: npt.NDArray[np.float32], logits: npt.NDArray[np.float32]) -> dict[str, float]:
    """Largest difference of a logit from PyTorch's in float32, ``logits``, and share of pixels of the same class."""
    from unetsharp_engines.rewrites import HeadTail, finish

    if output.shape != logits.shape:
        output = finish(output, HeadTail(classes=logits.shape[1], factor=2, channels=output.shape[1]))
    return {
        "max_difference": float(np.abs(output - logits).max()),
        "largest_logit": float(np.abs(logits).max()),
        "agreement": float((output.argmax(axis=1) == logits.argmax(axis=1)).mean()),
    }


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    steps = WorkSteps(__doc__)
    network_step = steps.add("network", network)
    network_step.add_argument("--weights", type=Path, help="instead of random ones of the paper's configuration")
    build_step = steps.add("build", build)
    build_step.add_argument("name", metavar="SET")
    build_step.add_argument("--level", type=int, default=1, help="builder level")
    engines_step, torch_step = steps.add("engines", time_engines), steps.add("torch", time_torch)
    for each in (engines_step, torch_step):
        each.add_argument("round", metavar="ROUND", help="name that both sides of a measurement have in common")
    torch_step.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    for each in (steps.add("export", export), engines_step, steps.add("layers", layers)):
        each.add_argument("names", metavar="SET", nargs="+")
    return steps.parser


if __name__ == "__main__":
    given = parser().parse_args()
    given.function(given)
