"""The CUDA kernels on a GPU: equal to their references over 500 tiles, and how fast.

    python benchmarks/cuda_kernels.py --tiles fold3.npz --out benchmarks/results/cuda_kernels.json
    compute-sanitizer --tool memcheck python benchmarks/cuda_kernels.py --sanitize

``--tiles``: files with an array ``images``, uint8 [N, 256, 256, 3]; beside them the repository's own tiles are used,
varied in colour until there are ``--count``, hostile ones among them. Times are medians by CUDA events of CUDA graphs
that hold many launches over buffers in turn, more than the GPU's cache holds. ``--sanitize`` runs every kernel once on
little. What the numbers are held to is in `bars.py`; `on_gpu.py` runs all of it.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cuda_tiles import hostile_tiles, varied_tiles
from deep_kernels import deep_equivalence, deep_times
from evidence import evidence, write_json
from unetsharp_engines.cuda import reference
from unetsharp_engines.cuda.compiling import compile_kernels
from unetsharp_engines.cuda.constants import STATUSES
from unetsharp_engines.cuda.device import open_device
from unetsharp_engines.cuda.graphs import Graph
from unetsharp_engines.cuda.kernels import TRANSFORM, Kernels, packed
from unetsharp_engines.stain import IDENTITY, StainStatus, StainTransform, estimate

SIDE, BATCH, SETS = 256, 64, 8
PIXELS = SIDE * SIDE


class Gpu:
    """Context, stream, kernels and memory."""

    def __init__(self) -> None:
        self.device = open_device()
        self.cuda = self.device.cuda
        self._entered = ExitStack()
        self._entered.enter_context(self.device.entered())
        self.stream = self.cuda.Stream(flags=1)
        self.compiled = compile_kernels(self.device.arch)
        self.kernels = Kernels(self.cuda.module_from_buffer(self.compiled.cubin))
        self._held: list[Any] = []

    def empty(self, size: int) -> int:
        """Device memory of ``size`` bytes, every one 0xFF so that what is not written shows."""
        memory = self.cuda.mem_alloc(size)
        self.cuda.memset_d8(memory, 0xFF, size)
        self.cuda.Context.synchronize()  # it was set on another stream than the kernels'
        self._held.append(memory)
        return int(memory)

    def holding(self, array: npt.NDArray[Any]) -> int:
        """Device memory with the array's bytes."""
        address = self.empty(array.nbytes)
        self.cuda.memcpy_htod(address, np.ascontiguousarray(array))
        self.cuda.Context.synchronize()
        return address

    def fetch(self, address: int, shape: tuple[int, ...], kind: npt.DTypeLike) -> npt.NDArray[Any]:
        """What device memory holds once the stream is done."""
        self.stream.synchronize()
        array = np.empty(shape, kind)
        self.cuda.memcpy_dtoh(array, address)
        return array

    def free(self) -> None:
        """Give all memory back."""
        self.stream.synchronize()
        for memory in self._held:
            memory.free()
        self._held.clear()

    def close(self) -> None:
        """Leave the context."""
        self.free()
        self._entered.close()

    def microseconds(self, launch: Callable[[int], None], *, repeats: int = 30, each: int = 2 * SETS) -> float:
        """Median time of ``launch(i)``, i counting up, from a CUDA graph of ``each`` of them."""
        launch(0)  # once outside the capture, so that its kernels are loaded
        graph = Graph(self.stream, lambda: _repeated(launch, each))
        times = [self.elapsed(graph.launch) / each for _ in range(repeats + 5)]
        graph.close()
        return statistics.median(times[5:])

    def elapsed(self, enqueue: Callable[[], None]) -> float:
        """Microseconds that the stream takes for what ``enqueue`` puts on it."""
        begin, end = self.cuda.Event(), self.cuda.Event()
        begin.record(self.stream)
        enqueue()
        end.record(self.stream)
        end.synchronize()
        return float(end.time_since(begin)) * 1e3


def _repeated(launch: Callable[[int], None], times: int) -> None:
    for i in range(times):
        launch(i)


def normalized(
    gpu: Gpu, tiles: npt.NDArray[np.uint8], fallback: StainTransform, *, half: bool
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Estimated and applied on the GPU: planes [N, 3, H, W], statuses, transforms."""
    n, height, width, _ = tiles.shape
    source, kind = gpu.holding(tiles), np.float16 if half else np.float32
    transforms, statuses = gpu.empty(n * TRANSFORM * 4), gpu.empty(n * 4)
    out = gpu.empty(tiles.size * np.dtype(kind).itemsize)
    gpu.kernels.estimate(
        *(source, transforms, statuses, gpu.empty(gpu.kernels.workspace_bytes(n))),
        groups=n,
        pixels_per_group=height * width,
        fallback=gpu.holding(packed(fallback)),
        stream=gpu.stream,
    )
    shape = {"n": n, "height": height, "width": width}
    gpu.kernels.apply(source, transforms, out, **shape, shared=False, half=half, stream=gpu.stream)
    found = (
        gpu.fetch(out, (n, 3, height, width), kind),
        gpu.fetch(statuses, (n,), np.int32),
        gpu.fetch(transforms, (n, TRANSFORM), np.float32),
    )
    gpu.free()
    return found


def stain_equivalence(gpu: Gpu, tiles: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """Levels of the whole way, estimated per tile, against the CPU path's; FP16 against exact values."""
    fallback = estimate(tiles[0]).transform
    worst: dict[str, float] = {"max_level": 0, "mean_level": 0, "equal_share": 1, "half_error": 0, "transform": 0}
    statuses: dict[str, int] = dict.fromkeys((status.value for status in StainStatus), 0)
    different = 0
    for at in range(0, len(tiles), BATCH):
        batch = tiles[at : at + BATCH]
        planes, found, transforms = normalized(gpu, batch, fallback, half=True)
        expected, expected_statuses = reference.estimate(batch, fallback)
        wanted = reference.apply(batch, expected)
        levels = np.rint(planes.astype(np.float64) * 255)
        for i, status in enumerate(expected_statuses):
            statuses[status.value] += 1
            different += STATUSES[found[i]] is not status
            far = np.abs(levels[i] - np.rint(wanted[i] * 255))
            same = far == 0
            error = np.abs(planes[i].astype(np.float64) - wanted[i])[same].max(initial=0.0)
            worst["max_level"] = max(worst["max_level"], float(far.max()))
            worst["mean_level"] = max(worst["mean_level"], float(far.mean()))
            worst["equal_share"] = min(worst["equal_share"], float(same.mean()))
            worst["half_error"] = max(worst["half_error"], float(error))
            worst["transform"] = max(worst["transform"], float(np.abs(packed(expected[i]) - transforms[i]).max()))
    return {"tiles": len(tiles), "statuses": statuses, "statuses_different": different, "worst_tile": worst}


def apply_equivalence(gpu: Gpu, tiles: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """The application alone, by the reference's transforms; where a level is off, how near a whole one it was."""
    parts = [_applied(gpu, tiles[at : at + BATCH]) for at in range(0, len(tiles), BATCH)]
    off = sum(part["levels_off"] for part in parts)
    return {
        "tiles": len(tiles),
        "levels_off": off,
        "share_off": off / tiles.size,
        "error_before_truncation": max(part["error_before_truncation"] for part in parts),
        "identity_is_exact": all(part["identity_is_exact"] for part in parts),
    }


def _applied(gpu: Gpu, tiles: npt.NDArray[np.uint8]) -> dict[str, Any]:
    transforms, _ = reference.estimate(tiles, IDENTITY)
    n = len(tiles)
    source, out = gpu.holding(tiles), gpu.empty(tiles.size * 4)
    rows = gpu.holding(np.stack([packed(transform) for transform in transforms]))
    shape = {"n": n, "height": SIDE, "width": SIDE}
    gpu.kernels.apply(source, rows, out, **shape, shared=False, half=False, stream=gpu.stream)
    found = np.rint(gpu.fetch(out, (n, 3, SIDE, SIDE), np.float32) * 255.0)
    gpu.kernels.apply(source, gpu.holding(packed(IDENTITY)), out, **shape, shared=True, half=False, stream=gpu.stream)
    identity = gpu.fetch(out, (n, 3, SIDE, SIDE), np.float32)
    exact = np.stack([t.apply_levels(tile) for t, tile in zip(transforms, tiles, strict=True)]).transpose(0, 3, 1, 2)
    off = found != np.floor(exact)
    gpu.free()
    return {
        "levels_off": int(off.sum()),
        "error_before_truncation": float(np.abs(exact - np.rint(exact))[off].max(initial=0.0)),
        "identity_is_exact": bool((np.rint(identity * 255.0) == tiles.transpose(0, 3, 1, 2)).all()),
    }


def finish_equivalence(gpu: Gpu, side: int = SIDE // 2, n: int = 4, margin: int = 20) -> dict[str, Any]:
    """Labels, confidences and probabilities from random taps and logits against the reference."""
    result: dict[str, Any] = {}
    rng = np.random.default_rng(0)
    for half in (True, False):
        kind = np.float16 if half else np.float32
        taps = rng.normal(size=(n, 56, side, side)).astype(kind)
        logits = rng.normal(scale=3, size=(n, 6, 2 * side, 2 * side)).astype(kind)
        result[np.dtype(kind).name] = {
            "taps": _finished(gpu, taps, reference.logits(taps), margin, half),
            "logits": _finished(gpu, logits, logits.astype(np.float64), margin, half),
        }
    return result


def _finished(
    gpu: Gpu, given: npt.NDArray[Any], logits: npt.NDArray[np.float64], margin: int, half: bool
) -> dict[str, float]:
    n, channels, height, width = given.shape
    of_taps = channels != logits.shape[1]
    kept = (n, logits.shape[2] - 2 * margin, logits.shape[3] - 2 * margin)
    source, labels, confidence = gpu.holding(given), gpu.empty(int(np.prod(kept))), gpu.empty(int(np.prod(kept)))
    out = gpu.empty(logits.size * 4)
    shape: dict[str, Any] = {"n": n, "height": height, "width": width, "half": half, "stream": gpu.stream}
    if of_taps:
        gpu.kernels.finish(source, labels, **shape, channels=channels, margin=margin, confidence=confidence)
        gpu.kernels.finish_probabilities(source, out, **shape, channels=channels)
    else:
        gpu.kernels.labels_of_logits(source, labels, **shape, margin=margin, confidence=confidence)
        gpu.kernels.probabilities_of_logits(source, out, **shape)
    wanted = reference.cropped(reference.labels(logits), margin)
    sure = reference.cropped(reference.confidences(logits), margin)
    two_best = np.sort(logits, axis=1)[:, -2:]
    off = gpu.fetch(labels, kept, np.uint8) != wanted
    found = {
        "labels_off": int(off.sum()),
        "lead_where_off": float(reference.cropped(two_best[:, 1] - two_best[:, 0], margin)[off].max(initial=0.0)),
        "confidence_error": float(np.abs(gpu.fetch(confidence, kept, np.uint8) - sure).max()),
        "probability_error": float(
            np.abs(gpu.fetch(out, logits.shape, np.float32) - reference.probabilities(logits)).max()
        ),
    }
    gpu.free()
    return found


def stain_times(gpu: Gpu, tiles: npt.NDArray[np.uint8], n: int) -> dict[str, float]:
    """Microseconds for ``n`` tiles, buffers in turn; copies beside them."""
    batch = np.resize(tiles, (n, SIDE, SIDE, 3))
    sources = [gpu.holding(np.roll(batch, i, axis=0)) for i in range(SETS)]
    outs = [gpu.empty(batch.size * 2) for _ in range(SETS)]
    transforms, statuses = gpu.empty(n * TRANSFORM * 4), gpu.empty(n * 4)
    workspace, fallback = gpu.empty(gpu.kernels.workspace_bytes(n)), gpu.holding(packed(IDENTITY))

    def apply(i: int) -> None:
        shape = {"n": n, "height": SIDE, "width": SIDE}
        source, out = sources[i % SETS], outs[i % SETS]
        gpu.kernels.apply(source, transforms, out, **shape, shared=False, half=True, stream=gpu.stream)

    def estimated(i: int) -> None:
        gpu.kernels.estimate(
            *(sources[i % SETS], transforms, statuses, workspace),
            groups=n,
            pixels_per_group=PIXELS,
            fallback=fallback,
            stream=gpu.stream,
        )

    def both(i: int) -> None:
        estimated(i)
        apply(i)

    moved = 9 * n * PIXELS
    halves = [gpu.empty(moved) for _ in range(SETS)]

    def copied(i: int) -> None:
        gpu.cuda.memcpy_dtod_async(halves[i % SETS], halves[i % SETS] + moved // 2, moved // 2, gpu.stream)

    both(0)  # transforms for the application alone
    found = {name: gpu.microseconds(f) for name, f in (("estimate", estimated), ("apply", apply), ("both", both))}
    found |= {
        "copy_of_as_many_bytes": gpu.microseconds(copied),
        "both_launched_one_by_one": gpu.elapsed(lambda: _repeated(both, 200)) / 200,
    }
    found["apply_share_of_copy"] = found["copy_of_as_many_bytes"] / found["apply"]
    found["apply_bytes_per_second"] = moved / found["apply"] * 1e6
    gpu.free()
    return found


def copy_bandwidth(gpu: Gpu, size: int = 1 << 30) -> float:
    """Bytes read and written per second by a large copy on the device."""
    source, target = gpu.empty(size), gpu.empty(size)
    time = gpu.microseconds(lambda i: gpu.cuda.memcpy_dtod_async(target, source, size, gpu.stream), each=4, repeats=10)
    gpu.free()
    return 2 * size / time * 1e6


def finish_times(gpu: Gpu, n: int, side: int = SIDE // 2) -> dict[str, float]:
    """Microseconds for ``n`` tiles' FP16 taps, buffers in turn."""
    rng = np.random.default_rng(1)
    taps = [gpu.holding(rng.normal(size=(n, 56, side, side)).astype(np.float16)) for _ in range(4)]
    labels, confidence = gpu.empty(n * PIXELS), gpu.empty(n * PIXELS)
    out = gpu.empty(n * 6 * PIXELS * 4)
    shape: dict[str, Any] = {
        "n": n, "channels": 56, "height": side, "width": side, "half": True, "stream": gpu.stream,
    }  # fmt: skip
    kernels = gpu.kernels
    found = {
        "labels": gpu.microseconds(lambda i: kernels.finish(taps[i % 4], labels, **shape, margin=0)),
        "labels_and_confidence": gpu.microseconds(
            lambda i: kernels.finish(taps[i % 4], labels, **shape, margin=0, confidence=confidence)
        ),
        "labels_within_margin_64": gpu.microseconds(lambda i: kernels.finish(taps[i % 4], labels, **shape, margin=64)),
        "probabilities": gpu.microseconds(lambda i: kernels.finish_probabilities(taps[i % 4], out, **shape)),
    }
    gpu.free()
    return found


def sanitized(gpu: Gpu) -> None:
    """Every kernel once, on little, with odd margins and several blocks a group."""
    tiles = np.stack([tile[:64, :64] for tile in (*varied_tiles([], 3), *hostile_tiles()[:3])])
    for half in (True, False):
        normalized(gpu, np.ascontiguousarray(tiles), IDENTITY, half=half)
    finish_equivalence(gpu, side=16, n=2, margin=3)
    deep_equivalence(gpu, height=5, width=6, n=2)
    whole = np.ascontiguousarray(np.resize(varied_tiles([], 2), (1, 96, 480, 3)))
    normalized(gpu, whole, IDENTITY, half=True)
    print("ran every kernel")


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--tiles", type=Path, nargs="*", default=[], help="npz files of tiles")
    made.add_argument("--count", type=int, default=500, help="tiles to check")
    made.add_argument("--out", type=Path, help="JSON file to write")
    made.add_argument("--sanitize", action="store_true", help="only run every kernel once, for compute-sanitizer")
    return made


def main() -> None:
    """Check, time, print, write."""
    arguments = parser().parse_args()
    gpu = Gpu()
    if arguments.sanitize:
        sanitized(gpu)
    else:
        report(gpu, np.concatenate([hostile_tiles(), varied_tiles(arguments.tiles, arguments.count)]), arguments.out)
    gpu.close()


def report(gpu: Gpu, tiles: npt.NDArray[np.uint8], out: Path | None) -> None:
    """All figures, each printed and, with ``out``, written as soon as it is there."""
    real = tiles[len(hostile_tiles()) :]
    sources = ("engines/unetsharp_engines/cuda", "benchmarks/cuda_kernels.py")
    result = evidence("CUDA kernels against their references", ("pycuda", "cuda-bindings", "numpy"), sources)
    result |= {"gpu": gpu.device.name, "kernels": {name: vars(facts) for name, facts in gpu.compiled.kernels.items()}}
    figures: dict[str, Callable[[], Any]] = {
        "stain": lambda: stain_equivalence(gpu, tiles),
        "apply": lambda: apply_equivalence(gpu, tiles),
        "finish": lambda: finish_equivalence(gpu),
        "deep": lambda: deep_equivalence(gpu),
        "copy_bytes_per_second": lambda: copy_bandwidth(gpu),
        "microseconds": lambda: {
            f"{n} tiles": {
                "stain": stain_times(gpu, real, n),
                "finish": finish_times(gpu, n),
                "deep": deep_times(gpu, n),
            }
            for n in (1, 16, BATCH)
        },
    }
    for name, figure in figures.items():
        result[name] = figure()
        print(name, json.dumps(result[name], indent=1), flush=True)
        if out is not None:
            write_json(out, result)


if __name__ == "__main__":
    main()
