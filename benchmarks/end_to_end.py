"""From uint8 tiles in host memory to uint8 labels in host memory, Macenko per tile: an engine beside PyTorch.

    python benchmarks/end_to_end.py engine --work WORK --engine WORK/tail-less.plan --meet torch   } side by side,
    python benchmarks/end_to_end.py torch --work WORK --weights WORK/paper.safetensors --meet engine } in turns
    python benchmarks/end_to_end.py report WORK --out benchmarks/results/end_to_end.json

``engine`` needs TensorRT, PyCUDA and cuda-bindings, ``torch`` PyTorch: these may be two Pythons, which then take turns
on the GPU by a lock. `rewrites_tensorrt.py` makes the engine, the weights and ``reference.npz`` in WORK.

What ``engine`` answers, beside the throughput: what each stage takes by events; what a batch takes end to end over what
the engine alone takes, copies overlapped (the bar: 1.10); what graphs save at batch 1; whether 100,000 tiles in a row
leave memory as it was and give identical tiles identical labels.
"""

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from turns import in_turn, meet
from unetsharp.bench.energy import metered
from unetsharp_engines.model_info import ModelInfo
from unetsharp_engines.runtimes.base import Runtime
from unetsharp_engines.stain import IDENTITY, StainPlan

Tiles = npt.NDArray[np.uint8]
PER_TILE, AS_SCANNED = StainPlan(IDENTITY, per_tile=True), StainPlan(IDENTITY)
BATCHES = (1, 16, 64)
TILES = 2048
"""Tiles in one turn."""
TURNS = 7
MANY = 100_000
CALLS_AT_ONE, WARM = 500, 50
INFO = ModelInfo(name="measured", encoder="resnext101_32x4d", width=64, train_size=224)


def engine(arguments: argparse.Namespace) -> None:
    """Measure the engine."""
    from unetsharp_engines.runtimes.tensorrt import TensorRtRuntime

    content, name = arguments.engine.read_bytes(), arguments.engine.stem

    def opened(**options: Any) -> TensorRtRuntime:
        return TensorRtRuntime(content, INFO, source=name, **options)

    tiles = real_tiles(arguments.work, TILES)
    found: dict[str, Any] = {"engine": name}
    with opened() as runtime:
        found |= {"device": runtime.device, "tensorrt": runtime.version, "batch": runtime.batch}
        found["agreement"] = agreement(runtime, arguments.work)
        tell(found)
        meet(arguments.work, "engine", arguments.meet)
        lock = arguments.work / "gpu.lock"
        found["throughput"] = {name: throughput(runtime, tiles, lock)}
        tell(found["throughput"])
        with in_turn(lock):
            sizes = [n for n in BATCHES if n <= runtime.batch]
            found["stages_ms"] = {n: milliseconds(runtime.stage_seconds(tiles[:n], PER_TILE)) for n in sizes}
            found["overlap"] = overlap(runtime, tiles, found["stages_ms"][sizes[-1]], sizes[-1])
            found["latency_ms"] = {"graph": latency(runtime, tiles)}
        tell(found["stages_ms"], found["overlap"])
    with in_turn(lock):
        with opened(captured=False) as runtime:
            found["latency_ms"]["plain launches"] = latency(runtime, tiles)
        with opened(slots=1) as runtime:
            found["tiles_per_s_with_one_slot"] = round(once(runtime, tiles), 1)
        tell(found["latency_ms"], found["tiles_per_s_with_one_slot"])
    if not arguments.brief:
        with in_turn(lock), opened() as runtime:
            found["endurance"] = endurance(runtime, tiles)
        tell(found["endurance"])
    write(arguments.work / "end_to_end_engine.json", found)


def torch(arguments: argparse.Namespace) -> None:
    """Measure PyTorch's chain: each form, each batch size."""
    import torch as pytorch

    from unetsharp.bench.torch_chain import TorchChain

    tiles = real_tiles(arguments.work, TILES)
    chains: dict[str, Runtime] = {}
    for mode in arguments.modes:
        for batch in arguments.batches:
            start = time.perf_counter()
            chain = TorchChain(arguments.weights, name=mode, batch=batch, device="cuda")
            chain.labels(tiles[: 2 * batch], PER_TILE)
            chains[f"{mode}, batch {batch}"] = chain
            tell(f"{mode}, batch {batch}: ready in {time.perf_counter() - start:.0f} s")
    found: dict[str, Any] = {"torch": pytorch.__version__, "device": pytorch.cuda.get_device_name()}
    found["agreement"] = {name: agreement(chain, arguments.work) for name, chain in list(chains.items())[:1]}
    meet(arguments.work, "torch", arguments.meet)
    lock = arguments.work / "gpu.lock"
    best = best_of(chains, tiles, lock)
    found["tuning_tiles_per_s"] = best
    winner = max(best, key=lambda name: best[name])
    found["throughput"] = {winner: throughput(chains[winner], tiles, lock)}
    with in_turn(lock):
        found["latency_ms"] = {
            name: latency(chain, tiles) for name, chain in chains.items() if name.endswith("batch 1")
        }
    tell(found)
    write(arguments.work / "end_to_end_torch.json", found)


def real_tiles(work: Path, count: int) -> Tiles:
    """``count`` tiles of a real slide, uint8, each moved on by a few levels so that no two are the same."""
    image = np.load(work / "reference.npz")["image"]
    some = np.rint(image * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    many = np.stack([some[i % len(some)] for i in range(count)])
    shift = (np.arange(count) // len(some) % 8).astype(np.uint8)
    return many - np.minimum(many, shift[:, None, None, None])


def agreement(runtime: Runtime, work: Path) -> float:
    """Share of pixels whose label is that of PyTorch's float32 logits, without stain normalization."""
    from unetsharp_engines.contract import LABEL_OF_CHANNEL

    wanted = LABEL_OF_CHANNEL[np.load(work / "reference.npz")["logits"].argmax(axis=1)]
    seen = runtime.labels(real_tiles(work, len(wanted)), AS_SCANNED)
    return float((seen == wanted).mean())


def once(runtime: Runtime, tiles: Tiles) -> float:
    """Tiles a second of one call, after one of half as many that warms up."""
    runtime.labels(tiles[: len(tiles) // 2], PER_TILE)
    start = time.perf_counter()
    runtime.labels(tiles, PER_TILE)
    return len(tiles) / (time.perf_counter() - start)


def throughput(runtime: Runtime, tiles: Tiles, lock: Path) -> dict[str, float | None]:
    """Tiles a second over turns, and joules a tile over all of them."""
    rates, joules = [], []
    for _ in range(TURNS):
        with in_turn(lock), metered(runtime.device) as energy:
            rates.append(once(runtime, tiles))
        joules.append(energy.joules)
    told = [value for value in joules if value is not None]
    return {
        "median": round(statistics.median(rates), 1),
        "least": round(min(rates), 1),
        "most": round(max(rates), 1),
        "joules_per_tile": round(statistics.median(told) / (1.5 * len(tiles)), 5) if told else None,
    }


def best_of(chains: dict[str, Runtime], tiles: Tiles, lock: Path) -> dict[str, float]:
    """Tiles a second of each chain, once."""
    rates = {}
    for name, chain in chains.items():
        with in_turn(lock):
            rates[name] = round(once(chain, tiles), 1)
    return rates


def overlap(runtime: Any, tiles: Tiles, stages: dict[str, float], batch: int) -> dict[str, float]:
    """What a batch takes end to end in a long row, over what the engine takes alone."""
    rate = once(runtime, tiles)
    end_to_end = 1e3 * batch / rate
    return {
        "batch": batch,
        "end_to_end_ms": round(end_to_end, 3),
        "engine_ms": stages["network"],
        "ratio": round(end_to_end / stages["network"], 4),
        "sum_of_stages_ms": round(sum(stages.values()), 3),
    }


def latency(runtime: Runtime, tiles: Tiles) -> dict[str, float]:
    """Milliseconds of one tile from host to host."""
    times = []
    for index in range(CALLS_AT_ONE + WARM):
        start = time.perf_counter()
        runtime.labels(tiles[index % len(tiles)][None], PER_TILE)
        times.append(1e3 * (time.perf_counter() - start))
    p50, p99 = np.percentile(times[WARM:], (50, 99))
    return {"p50": round(float(p50), 4), "p99": round(float(p99), 4)}


def endurance(runtime: Any, tiles: Tiles) -> dict[str, Any]:
    """`MANY` tiles in a row: memory before and after, and whether equal tiles had equal labels every time."""
    digests = {_digest(runtime, tiles) for _ in range(2)}
    before = memory(runtime)
    start = time.perf_counter()
    rounds = -(-MANY // len(tiles))
    digests |= {_digest(runtime, tiles) for _ in range(rounds)}
    seconds = time.perf_counter() - start
    alone = np.concatenate([runtime.labels(tile[None], PER_TILE) for tile in tiles[:64]])
    return {
        "tiles": rounds * len(tiles),
        "seconds": round(seconds, 1),
        "identical": len(digests) == 1,
        "agreement_of_batches_with_single_tiles": float((alone == runtime.labels(tiles[:64], PER_TILE)).mean()),
        "memory_before": before,
        "memory_after": memory(runtime),
    }


def _digest(runtime: Runtime, tiles: Tiles) -> str:
    return hashlib.sha256(runtime.labels(tiles, PER_TILE).tobytes()).hexdigest()


def memory(runtime: Any) -> dict[str, int]:
    """Bytes in use of the GPU, and of this process."""
    with runtime._device.entered():
        free, total = runtime._device.cuda.mem_get_info()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {"gpu": int(total - free), "host": pages * 4096}


def milliseconds(seconds: dict[str, float]) -> dict[str, float]:
    """The same in milliseconds."""
    return {name: round(1e3 * value, 4) for name, value in seconds.items()}


def report(arguments: argparse.Namespace) -> None:
    """Join both sides and say how they compare."""
    from evidence import evidence

    joined = {
        side: json.loads((arguments.work / f"end_to_end_{side}.json").read_text()) for side in ("engine", "torch")
    }
    rates = {side: max(row["median"] for row in joined[side]["throughput"].values()) for side in joined}
    content = {
        **evidence("uint8 tiles to uint8 labels, host to host, Macenko per tile, 256²", (), ("engines", "toolkit")),
        **joined,
        "times_faster": round(rates["engine"] / rates["torch"], 3),
    }
    write(arguments.out, content)
    tell(content)


def tell(*things: Any) -> None:
    """Print at once."""
    for thing in things:
        print(thing if isinstance(thing, str) else json.dumps(thing, indent=1), flush=True)


def write(path: Path, content: Any) -> None:
    """JSON."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main(words: Sequence[str] | None = None) -> None:
    """One side of the measurement, or the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(required=True)

    def step(function: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        added = steps.add_parser(function.__name__, help=function.__doc__)
        added.set_defaults(function=function)
        return added

    engine_step, torch_step, report_step = step(engine), step(torch), step(report)
    for each in (engine_step, torch_step):
        each.add_argument("--work", type=Path, required=True, help="folder with reference.npz, and for the results")
        each.add_argument("--meet", nargs="*", default=[], help="processes to wait for before measuring")
    engine_step.add_argument("--engine", type=Path, required=True)
    engine_step.add_argument("--brief", action="store_true", help=f"without the {MANY:,} tiles")
    torch_step.add_argument("--weights", type=Path, required=True)
    torch_step.add_argument("--modes", nargs="+", default=["torch-compile"])
    torch_step.add_argument("--batches", type=int, nargs="+", default=[1, 32, 64, 128])
    report_step.add_argument("work", type=Path)
    report_step.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(words)
    arguments.function(arguments)


if __name__ == "__main__":
    main()
