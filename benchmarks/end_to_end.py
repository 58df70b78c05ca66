"""From uint8 tiles in host memory to uint8 labels in host memory, Macenko per tile: an engine beside PyTorch.

    python benchmarks/end_to_end.py engine --work WORK --engine WORK/tail-less.plan              what the engine does
    python benchmarks/end_to_end.py torch --work WORK --weights WORK/paper.safetensors           PyTorch, tuned
    python benchmarks/end_to_end.py race engine --work WORK --engine WORK/tail-less.plan     } side by side,
    python benchmarks/end_to_end.py race torch --work WORK --weights WORK/paper.safetensors  } in turns
    python benchmarks/end_to_end.py report WORK --out benchmarks/results/end_to_end.json

The engine's side needs TensorRT, PyCUDA and cuda-bindings, the other PyTorch: these may be two Pythons, which take
turns on the GPU by a lock. `rewrites_tensorrt.py` makes the engine, the weights and ``reference.npz`` in WORK.

What ``engine`` answers: do its labels agree with PyTorch's in float32; what each stage takes by events; what a batch
takes end to end over what the engine alone takes, copies overlapped (the bar: 1.10); what graphs and a second slot
bring; whether 100,000 tiles in a row leave memory as it was and give identical tiles identical labels.

Each case runs in a process of its own, within a time limit, and leaves its result in WORK at once: a case that fails,
or takes the GPU down with it, is told and stops no other.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from turns import arrive, in_turn, meet
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
CASE_S, MANY_S, TUNE_S = 120, 240, 200
"""Time limits of a case, of the one with `MANY` tiles, and of one that compiles."""
PATIENCE_S = 150
"""How long one side of the race waits for the other."""
INFO = ModelInfo(name="measured", encoder="resnext101_32x4d", width=64, train_size=224)


def main(words: Sequence[str] | None = None) -> None:
    """One step of the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["engine", "torch", "race", "case", "report"])
    parser.add_argument("name", nargs="?", help="race: engine or torch; case: which; report: the folder WORK")
    parser.add_argument("--work", type=Path, help="folder with reference.npz, and for the results")
    parser.add_argument("--engine", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--modes", nargs="+", default=["torch-compile"])
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128, 32, 1])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(words)
    {"engine": engine, "torch": torch, "race": race, "case": case, "report": report}[arguments.step](arguments)


def engine(arguments: argparse.Namespace) -> None:
    """Every case of the engine."""
    for name in ENGINE_CASES:
        run_case(name, arguments, MANY_S if name == "endurance" else CASE_S)


def torch(arguments: argparse.Namespace) -> None:
    """PyTorch's chain in each form and batch size, the likeliest first."""
    for mode in arguments.modes:
        for batch in arguments.batches:
            run_case(f"torch:{mode}:{batch}", arguments, TUNE_S)


def race(arguments: argparse.Namespace) -> None:
    """One side of the race: the engine, or PyTorch's best form so far."""
    if arguments.name == "engine":
        run_case("race engine", arguments, CASE_S + PATIENCE_S)
        return
    rates = {name: found["tiles_per_s"] for name, found in results(arguments.work, "torch:") if "failed" not in found}
    if not rates:
        raise SystemExit("no form of PyTorch ran; nothing to race")
    best = max(rates, key=lambda name: rates[name])
    run_case(f"race {best}", arguments, TUNE_S + PATIENCE_S)


def run_case(name: str, arguments: argparse.Namespace, limit_s: int) -> None:
    """Run one case in a process of its own; whatever becomes of it, its file in WORK says so."""
    command = [sys.executable, __file__, "case", name, "--work", str(arguments.work)]
    for option in ("engine", "weights"):
        if value := getattr(arguments, option):
            command += [f"--{option}", str(value)]
    start = time.monotonic()
    result_file(arguments.work, name).unlink(missing_ok=True)
    try:
        done = subprocess.run(command, timeout=limit_s, check=False, capture_output=True, text=True)
        failure = "" if done.returncode == 0 else f"exit {done.returncode}: {done.stderr.strip()[-1500:]}"
    except subprocess.TimeoutExpired:
        failure = f"did not end in {limit_s} s"
    if failure:
        write(result_file(arguments.work, name), {"failed": failure})
    print(f"{name} ({time.monotonic() - start:.0f} s): {result_file(arguments.work, name).read_text()}", flush=True)


def case(arguments: argparse.Namespace) -> None:
    """One case, in this process."""
    kind, _, rest = arguments.name.partition(":")
    work, tiles = arguments.work, real_tiles(arguments.work, TILES)
    if kind in ENGINE_CASES:
        found = ENGINE_CASES[kind](opener(arguments.engine), tiles, work)
    elif kind == "race engine":
        arrive(work, "engine")
        with opener(arguments.engine)() as runtime:
            runtime.labels(tiles, PER_TILE)
            found = raced(runtime, "engine", "torch", tiles, work)
    else:
        if kind == "race torch":
            arrive(work, "torch")
        mode, batch = rest.split(":")
        found = torch_case(arguments.weights, mode, int(batch), tiles, work, is_race=kind == "race torch")
    write(result_file(work, arguments.name), found)


def opener(path: Path) -> Callable[..., Any]:
    """A function that opens the engine on its runtime."""
    from unetsharp_engines.runtimes.tensorrt import TensorRtRuntime

    content = path.read_bytes()
    return lambda **options: TensorRtRuntime(content, INFO, source=path.name, **options)


def stages(opened: Callable[..., Any], tiles: Tiles, work: Path) -> dict[str, Any]:
    """What the engine is, and what its stages take."""
    with opened() as runtime, in_turn(work / "gpu.lock"):
        sizes = [n for n in BATCHES if n <= runtime.batch]
        seconds = {n: runtime.stage_seconds(tiles[:n], PER_TILE) for n in sizes}
        return {
            "device": runtime.device,
            "tensorrt": runtime.version,
            "batch": runtime.batch,
            "agreement": agreement(runtime, work),
            "milliseconds": {n: {stage: round(1e3 * s, 4) for stage, s in by.items()} for n, by in seconds.items()},
        }


def overlap(opened: Callable[..., Any], tiles: Tiles, work: Path) -> dict[str, Any]:
    """What a batch takes end to end in a long row, over what the engine alone takes; the same with one slot."""
    found: dict[str, Any] = {}
    for slots in (2, 1, 3):
        with opened(slots=slots) as runtime, in_turn(work / "gpu.lock"):
            batch = runtime.batch
            network = 1e3 * runtime.stage_seconds(tiles[:batch], PER_TILE)["network"]
            end_to_end = 1e3 * batch / statistics.median(once(runtime, tiles) for _ in range(3))
            found[f"{slots} slots"] = {
                "batch": batch,
                "end_to_end_ms": round(end_to_end, 3),
                "engine_ms": round(network, 3),
                "ratio": round(end_to_end / network, 4),
            }
    return found


def latencies(opened: Callable[..., Any], tiles: Tiles, work: Path) -> dict[str, Any]:
    """Milliseconds of one tile from host to host, with a graph and without."""
    found = {}
    for name, captured in (("graph", True), ("plain launches", False)):
        with opened(captured=captured) as runtime, in_turn(work / "gpu.lock"):
            found[name] = latency(runtime, tiles)
    return found


def endurance(opened: Callable[..., Any], tiles: Tiles, work: Path) -> dict[str, Any]:
    """`MANY` tiles in a row: memory before and after, and whether equal tiles had equal labels every time."""
    with opened() as runtime, in_turn(work / "gpu.lock"):
        digests = {_digest(runtime, tiles) for _ in range(2)}
        before = memory(runtime)
        start = time.perf_counter()
        rounds = -(-MANY // len(tiles))
        digests |= {_digest(runtime, tiles) for _ in range(rounds)}
        seconds = time.perf_counter() - start
        after = memory(runtime)
        alone = np.concatenate([runtime.labels(tile[None], PER_TILE) for tile in tiles[:64]])
        return {
            "tiles": rounds * len(tiles),
            "seconds": round(seconds, 1),
            "identical": len(digests) == 1,
            "agreement_of_batches_with_single_tiles": float((alone == runtime.labels(tiles[:64], PER_TILE)).mean()),
            "grown_bytes": {name: after[name] - before[name] for name in after},
            "memory_bytes": after,
        }


ENGINE_CASES: dict[str, Callable[..., dict[str, Any]]] = {
    "stages": stages,
    "overlap": overlap,
    "latencies": latencies,
    "endurance": endurance,
}


def torch_case(weights: Path, mode: str, batch: int, tiles: Tiles, work: Path, *, is_race: bool) -> dict[str, Any]:
    """One form of PyTorch's chain: its rate, or the race."""
    import torch as pytorch

    from unetsharp.bench.torch_chain import TorchChain

    start = time.perf_counter()
    with TorchChain(weights, name=mode, batch=batch, device="cuda") as chain:
        chain.labels(tiles[: 4 * batch], PER_TILE)
        ready = {"torch": pytorch.__version__, "seconds_to_compile": round(time.perf_counter() - start, 1)}
        if is_race:
            return {**ready, "form": f"{mode}, batch {batch}", **raced(chain, "torch", "engine", tiles, work)}
        with in_turn(work / "gpu.lock"):
            rate = round(statistics.median(once(chain, tiles) for _ in range(3)), 1)
            single = {"latency_ms": latency(chain, tiles)} if batch == 1 else {}
            return {**ready, "tiles_per_s": rate, "agreement": agreement(chain, work), **single}


def raced(runtime: Runtime, name: str, other: str, tiles: Tiles, work: Path) -> dict[str, Any]:
    """Tiles a second and joules a tile over turns with the ``other``; ``alone`` where that did not come."""
    alone = not meet(work, name, [other], patience_s=PATIENCE_S)
    rates, joules = [], []
    for _ in range(TURNS):
        with in_turn(work / "gpu.lock"), metered(runtime.device) as energy:
            rates.append(once(runtime, tiles))
        joules.append(energy.joules)
    told = [value for value in joules if value is not None]
    return {
        "alone": alone,
        "tiles_per_s": round(statistics.median(rates), 1),
        "least": round(min(rates), 1),
        "most": round(max(rates), 1),
        "joules_per_tile": round(statistics.median(told) / (1.5 * len(tiles)), 5) if told else None,
    }


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


def latency(runtime: Runtime, tiles: Tiles) -> dict[str, float]:
    """Milliseconds of one tile from host to host."""
    times = []
    for index in range(CALLS_AT_ONE + WARM):
        start = time.perf_counter()
        runtime.labels(tiles[index % len(tiles)][None], PER_TILE)
        times.append(1e3 * (time.perf_counter() - start))
    p50, p99 = np.percentile(times[WARM:], (50, 99))
    return {"p50": round(float(p50), 4), "p99": round(float(p99), 4)}


def _digest(runtime: Runtime, tiles: Tiles) -> str:
    return hashlib.sha256(runtime.labels(tiles, PER_TILE).tobytes()).hexdigest()


def memory(runtime: Any) -> dict[str, int]:
    """Bytes in use of the GPU, and of this process."""
    with runtime._device.entered():
        free, total = runtime._device.cuda.mem_get_info()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {"gpu": int(total - free), "host": pages * 4096}


def report(arguments: argparse.Namespace) -> None:
    """Join what the cases found, and say how the race ended."""
    from evidence import evidence

    found = dict(results(Path(arguments.name)))
    ended = {name: result for name, result in found.items() if name.startswith("race ") and "failed" not in result}
    rates = {name: result["tiles_per_s"] for name, result in ended.items()}
    engine_rate = rates.pop("race engine", None)
    content = {
        **evidence("uint8 tiles to uint8 labels, host to host, Macenko per tile, 256²", (), ("engines", "toolkit")),
        "cases": found,
        "times_faster": round(engine_rate / max(rates.values()), 3) if engine_rate and rates else None,
    }
    write(arguments.out, content)
    print(json.dumps(content, indent=1))


def results(work: Path, prefix: str = "") -> Iterable[tuple[str, dict[str, Any]]]:
    """Names and results of the cases that begin with ``prefix``."""
    for path in sorted(work.glob("end_to_end-*.json")):
        name = path.stem.removeprefix("end_to_end-").replace("+", ":").replace("_", " ")
        if name.startswith(prefix):
            yield name, json.loads(path.read_text())


def result_file(work: Path, name: str) -> Path:
    """Where a case leaves what it found."""
    return work / f"end_to_end-{name.replace(':', '+').replace(' ', '_')}.json"


def write(path: Path, content: Any) -> None:
    """JSON."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
