"""From uint8 tiles in host memory to uint8 labels in host memory, Macenko per tile: an engine beside PyTorch.

`on_gpu.py` runs these cases, each a process that leaves WORK/CASE.json:

    python benchmarks/end_to_end.py CASE WORK

``stages``: do the labels agree with PyTorch's in float32, and what each stage takes by events.
``overlap``: what a batch takes end to end over what the engine alone takes, copies overlapped.
``latencies``: what graphs bring at one tile.
``endurance``: whether 100,000 tiles in a row leave memory as it was and give identical tiles identical labels.
``chain-64`` and so on: PyTorch's rate, compiled for so many tiles at once; ``compile-64`` does only that.
``race-engine`` and ``race-torch``, side by side, take turns: the engine, and PyTorch in the batch that was fastest.

The engine's cases need TensorRT, PyCUDA and cuda-bindings, PyTorch's PyTorch: these may be two Pythons.
`rewrites_tensorrt.py` makes what they read in WORK: tail-less.plan, paper.safetensors and reference.npz.
"""

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evidence import write_json
from turns import in_turn, meet
from unetsharp.bench.energy import metered
from unetsharp_engines.model_info import ModelInfo
from unetsharp_engines.runtimes.base import Runtime
from unetsharp_engines.stain import IDENTITY, StainPlan

Tiles = npt.NDArray[np.uint8]
PER_TILE, AS_SCANNED = StainPlan(IDENTITY, per_tile=True), StainPlan(IDENTITY)
BATCHES = (1, 16, 64)
CHAIN_BATCHES = (64, 128, 32)
"""What PyTorch's chain is compiled for, the likeliest to be fastest first."""
TILES = 2048
"""Tiles in one turn."""
TURNS = 7
MANY = 100_000
CALLS_AT_ONE, WARM = 500, 50
PATIENCE_S = 150
"""How long one side of the race waits for the other."""
INFO = ModelInfo(name="measured", encoder="resnext101_32x4d", width=64, train_size=224)


def stages(opened: Callable[..., Any], tiles: Tiles, work: Path) -> dict[str, Any]:
    """What the engine is, and what its stages take."""
    with opened() as runtime, in_turn(work):
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
        with opened(slots=slots) as runtime, in_turn(work):
            batch = runtime.batch
            network = 1e3 * runtime.stage_seconds(tiles[:batch], PER_TILE)["network"]
            end_to_end = 1e3 * batch / statistics.median(once(runtime, tiles) for _ in range(3))
            found[f"{slots} slots"] = {
                "batch": batch,
                "end_to_end_ms": round(end_to_end, 3),
                "engine_ms": round(network, 3),
                "ratio": round(end_to_end / network, 4),
            }
        write_json(result_file(work, "overlap"), found)  # another slot may not fit
    return found


def latencies(opened: Callable[..., Any], tiles: Tiles, work: Path) -> dict[str, Any]:
    """Milliseconds of one tile from host to host, with a graph and without."""
    found = {}
    for name, captured in (("graph", True), ("plain launches", False)):
        with opened(captured=captured) as runtime, in_turn(work):
            found[name] = latency(runtime, tiles)
    return found


def endurance(opened: Callable[..., Any], tiles: Tiles, work: Path) -> dict[str, Any]:
    """`MANY` tiles in a row: memory before and after, and whether equal tiles had equal labels every time."""
    with opened() as runtime, in_turn(work):
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


def race_engine(opened: Callable[..., Any], tiles: Tiles, work: Path) -> dict[str, Any]:
    """The engine's side of the race."""
    with opened() as runtime:
        runtime.labels(tiles, PER_TILE)
        return raced(runtime, "race-engine", "race-torch", tiles, work)


def compile_chain(batch: int, tiles: Tiles, work: Path) -> dict[str, Any]:
    """Compile PyTorch's chain, which PyTorch keeps in its cache."""
    with chain(batch, tiles, work) as (_, facts):
        return facts


def chain_rate(batch: int, tiles: Tiles, work: Path) -> dict[str, Any]:
    """Tiles a second of PyTorch's chain."""
    with chain(batch, tiles, work) as (runtime, facts), in_turn(work):
        rate = round(statistics.median(once(runtime, tiles) for _ in range(3)), 1)
        return {**facts, "tiles_per_s": rate, "agreement": agreement(runtime, work)}


def race_torch(tiles: Tiles, work: Path) -> dict[str, Any]:
    """PyTorch's side of the race, in the batch that was fastest."""
    found = {batch: result_file(work, f"chain-{batch}") for batch in CHAIN_BATCHES}
    rates = {batch: json.loads(path.read_text())["tiles_per_s"] for batch, path in found.items() if path.exists()}
    if not rates:
        raise SystemExit("PyTorch's chain ran in no batch: nothing to race")
    with chain(max(rates, key=lambda batch: rates[batch]), tiles, work) as (runtime, facts):
        return {**facts, "rates": rates, **raced(runtime, "race-torch", "race-engine", tiles, work)}


@contextmanager
def chain(batch: int, tiles: Tiles, work: Path) -> Iterator[tuple[Runtime, dict[str, Any]]]:
    """PyTorch's chain, compiled and run once, and what it is."""
    import torch

    from unetsharp.bench.torch_chain import TorchChain

    start = time.perf_counter()
    with TorchChain(work / "paper.safetensors", name="torch-compile", batch=batch, device="cuda") as runtime:
        runtime.labels(tiles[: 4 * batch], PER_TILE)
        seconds = round(time.perf_counter() - start, 1)
        yield runtime, {"torch": torch.__version__, "batch": batch, "seconds_to_compile": seconds}


def raced(runtime: Runtime, name: str, other: str, tiles: Tiles, work: Path) -> dict[str, Any]:
    """Tiles a second and joules a tile over turns with the ``other``; ``alone`` where that did not come."""
    alone = not meet(work, name, other, patience_s=PATIENCE_S)
    rates, joules = [], []
    for _ in range(TURNS):
        with in_turn(work), metered(runtime.device) as energy:
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


def opener(path: Path) -> Callable[..., Any]:
    """A function that opens the engine on its runtime."""
    from unetsharp_engines.runtimes.tensorrt import TensorRtRuntime

    return partial(TensorRtRuntime, path.read_bytes(), INFO, source=path.name)


def real_tiles(work: Path, count: int) -> Tiles:
    """``count`` tiles of a real slide, uint8, each moved on by a few levels so that no two are the same."""
    image = np.load(work / "reference.npz")["image"]
    some = np.rint(image * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    many = np.stack([some[i % len(some)] for i in range(count)])
    shift = (np.arange(count) // len(some) % 8).astype(np.uint8)
    return np.asarray(many - np.minimum(many, shift[:, None, None, None]))


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


ENGINE_CASES: dict[str, Callable[[Callable[..., Any], Tiles, Path], dict[str, Any]]] = {
    "stages": stages,
    "overlap": overlap,
    "latencies": latencies,
    "endurance": endurance,
    "race-engine": race_engine,
}
TORCH_CASES: dict[str, Callable[[Tiles, Path], dict[str, Any]]] = {
    **{f"compile-{batch}": partial(compile_chain, batch) for batch in CHAIN_BATCHES},
    **{f"chain-{batch}": partial(chain_rate, batch) for batch in CHAIN_BATCHES},
    "race-torch": race_torch,
}


def result_file(work: Path, name: str) -> Path:
    """Where a case leaves what it found."""
    return work / f"{name}.json"


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("case", choices=[*ENGINE_CASES, *TORCH_CASES])
    made.add_argument("work", type=Path, metavar="WORK")
    return made


def main() -> None:
    """One case."""
    arguments = parser().parse_args()
    name, work = arguments.case, arguments.work
    tiles = real_tiles(work, TILES)
    if name in ENGINE_CASES:
        found = ENGINE_CASES[name](opener(work / "tail-less.plan"), tiles, work)
    else:
        found = TORCH_CASES[name](tiles, work)
    print(json.dumps(found, indent=1))
    write_json(result_file(work, name), found)


if __name__ == "__main__":
    main()
