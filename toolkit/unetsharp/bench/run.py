"""A run of the bench: what it asks of each contestant, and the record it keeps."""

import functools
import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unetsharp import machine
from unetsharp.bench import measure, torchstain
from unetsharp.bench.contestants import PEERS, Contestant, peers_of, subjects
from unetsharp.bench.energy import metered
from unetsharp.bench.roofline import Peak, cost_of, peak_of, shares
from unetsharp.bench.tiles import real_tiles, write_pictures
from unetsharp.bench.torch_chain import MODES
from unetsharp.outputs.record import about_model, about_system, now
from unetsharp_engines.errors import InputError
from unetsharp_engines.stain import IDENTITY, StainPlan, StainStatus, estimate

if TYPE_CHECKING:
    from unetsharp.cli.output import Output

__all__ = ["BenchSettings", "bench", "parse_batches", "parse_names"]

_PER_TILE = StainPlan(IDENTITY, per_tile=True)
FILES = 64
"""Pictures read in the measurement from files, or one batch of them if that is more."""


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """What to measure."""

    models: tuple[Path, ...] = ()
    """Bundles, ONNX or weights; none is the edge-sized network that ships."""
    runtime: str = "auto"
    against: tuple[str, ...] = ()
    """Peers (`contestants.PEERS`) of the first model, and ``torchstain`` of its stain step."""
    batches: tuple[int, ...] = (1, 8)
    weights: Path | None = None
    """What PyTorch peers run, where it is not what ships."""
    trust: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without a network. Raises InputError."""
        known = (*PEERS, torchstain.NAME)
        if unknown := [name for name in self.against if name not in known]:
            raise InputError(f"--against {unknown[0]}: wanted some of {', '.join(known)}")
        if self.weights is not None and not set(self.against).intersection(MODES):
            raise InputError(f"--weights {self.weights}: serves PyTorch's peers alone; add --against torch")


def parse_names(text: str | None) -> tuple[str, ...]:
    """``torch,torchstain`` → the two, in order and once each."""
    names = (name.strip() for name in (text or "").split(","))
    return tuple(dict.fromkeys(name for name in names if name))


def parse_batches(text: str) -> tuple[int, ...]:
    """``1,8`` → (1, 8), ascending. InputError for what is no list of whole numbers from 1 on."""
    try:
        sizes = sorted({int(number) for number in text.split(",")})
    except ValueError:
        sizes = []
    if not sizes or sizes[0] < 1:
        raise InputError(f"--batch {text}: wanted batch sizes of 1 or more, with commas: 1,8,32")
    return tuple(sizes)


def bench(settings: BenchSettings, output: "Output") -> dict[str, Any]:
    """Measure, and return the record: ``contestants``, each with its numbers by batch, system, arguments.

    Tiles are real, uint8 in host memory, and labels come back there; each tile is normalized by its own stain estimate
    if the first network was trained after normalization. Raises what `contestants.subjects`,
    `contestants.peers_of` and `torchstain.check_installed` do.
    """
    if torchstain.NAME in settings.against:
        torchstain.check_installed()
    started = now()
    sizes = sorted({1, *settings.batches})  # a peer made for eight tiles would take as long for one
    with ExitStack() as closing:
        networks = subjects(
            settings.models,
            settings.runtime,
            sizes,
            trust=settings.trust,
            output=output,
            closing=closing,
        )
        first = settings.models[0] if settings.models else None
        names = [name for name in settings.against if name != torchstain.NAME]
        peers = peers_of(networks[0], first, names, sizes, weights=settings.weights, closing=closing)
        stain = _PER_TILE if networks[0].runtime.info.stain != "none" else StainPlan(IDENTITY)
        rows = _measured([*networks, *peers], len(networks), settings, stain, output)
        return {
            "started": started,
            "finished": now(),
            "arguments": _arguments(settings),
            "system": {**about_system(networks[0].runtime), **_machine()},
            "model": about_model(networks[0].runtime.info, first),
            "stain": "tile" if stain.per_tile else "none",
            "contestants": rows,
            "stain_step_s": _stain_step(networks[0], settings) if torchstain.NAME in settings.against else None,
        }


def _machine() -> dict[str, Any]:
    """What speed depends on, beside the versions."""
    return {
        "processor": machine.processor_name(),
        "cores": os.cpu_count(),
        "memory_bytes": machine.memory_bytes(),
        "gpus": [asdict(gpu) for gpu in machine.gpus()],
        "driver": machine.driver_version(),
        "cuda": machine.cuda_version(),
    }


def _measured(
    contestants: list[Contestant], own: int, settings: BenchSettings, stain: StainPlan, output: "Output"
) -> list[dict[str, Any]]:
    """One entry a contestant; the first ``own`` are taken apart, the others are only raced."""
    tiles = real_tiles(max(*settings.batches, FILES), contestants[0].runtime.info.tile)
    steps = len(settings.batches) * len(contestants) * measure.TURNS + len(contestants)
    entries = [_entry(contestant) for contestant in contestants]
    peak = functools.cache(peak_of)  # one measurement for all
    with output.progress("Measuring", steps, unit="turns") as advance:
        for batch in settings.batches:
            rates = measure.throughput(contestants, batch, tiles, stain, advance)
            for entry, rate in zip(entries, rates, strict=True):
                entry["batches"][str(batch)] = rate
                output.detail(f"  batch {batch}, {entry['name']}: {rate['tiles_per_s']:.1f} tiles/s")
        for index, (contestant, entry) in enumerate(zip(contestants, entries, strict=True)):
            entry["latency_s"] = measure.latency(contestant.runtimes[1], tiles, stain)
            if index < own:
                _take_apart(contestant, entry, tiles, stain, settings.batches, peak)
            advance()
    _compare(entries)
    return entries


def _entry(contestant: Contestant) -> dict[str, Any]:
    runtime = contestant.runtime
    with metered(runtime.device) as energy:
        pass
    return {
        "name": contestant.name,
        "runtime": {"name": runtime.name, "version": runtime.version, "device": runtime.device},
        "weights_sha256": runtime.info.weights_sha256,
        "onnx_sha256": None if contestant.onnx is None else hashlib.sha256(contestant.onnx).hexdigest(),
        "energy": energy.why_not or "read by NVML, of the whole GPU",
        "batches": {},
    }


def _take_apart(
    contestant: Contestant,
    entry: dict[str, Any],
    tiles: Any,
    stain: StainPlan,
    batches: Sequence[int],
    peak_of_device: Callable[[str], Peak],
) -> None:
    """Stages, files and the roofline of one of the networks that are measured for themselves."""
    for batch in batches:
        runtime = contestant.runtimes[batch]
        if batch <= runtime.batch or not hasattr(runtime, "stage_seconds"):
            entry["batches"][str(batch)]["stage_s"] = measure.stage_seconds(runtime, tiles[:batch], stain)
    largest = max(batches)
    with tempfile.TemporaryDirectory() as folder:
        pictures = write_pictures(tiles, Path(folder))
        entry["from_files"] = {
            "batch": largest,
            "tiles_per_s": measure.from_files(contestant.runtimes[largest], pictures, largest, stain),
        }
    if contestant.onnx is not None:
        entry["roofline"] = _roofline(contestant.onnx, entry, peak_of_device(contestant.runtime.device))


def _roofline(onnx: bytes, entry: dict[str, Any], peak: Peak) -> dict[str, Any]:
    macs, moved = cost_of(onnx)
    fastest = max(row["tiles_per_s"] for row in entry["batches"].values())
    return {
        "macs_per_tile": macs,
        "bytes_per_tile": moved,
        "peak_macs_per_s": peak.macs,
        "peak_bytes_per_s": peak.bytes,
        "peak_from": peak.source,
        "share": shares(fastest, macs, moved, peak),
    }


def _stain_step(contestant: Contestant, settings: BenchSettings) -> dict[str, float]:
    """Seconds a tile of estimation and normalization: the network's runtime, in its largest batch, and torchstain."""
    batch = min(max(settings.batches), contestant.runtime.batch)
    tiles = real_tiles(FILES, contestant.runtime.info.tile)
    sound = np.stack([tile for tile in tiles if estimate(tile).status is StainStatus.OK])
    seconds = measure.stage_seconds(contestant.runtimes[max(settings.batches)], tiles[:batch], _PER_TILE)
    peers = torchstain.seconds_per_tile(sound)
    return {contestant.name: seconds["stain"] / batch, **{f"torchstain, {at}": s for at, s in peers.items()}}


def _compare(entries: list[dict[str, Any]]) -> None:
    """Say of each contestant how many times faster the first is, by batch."""
    first = entries[0]["batches"]
    for entry in entries[1:]:
        for batch, row in entry["batches"].items():
            row["first_is_faster_by"] = first[batch]["tiles_per_s"] / row["tiles_per_s"]


def _arguments(settings: BenchSettings) -> dict[str, Any]:
    return {
        "models": [str(model) for model in settings.models],
        "runtime": settings.runtime,
        "against": list(settings.against),
        "batches": list(settings.batches),
        "weights": None if settings.weights is None else str(settings.weights),
        "trust": settings.trust,
    }
