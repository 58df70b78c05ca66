"""A run over many pictures: bad ones are told and passed over, done ones can be kept, everything is recorded."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetsharp.infer.fields import fields_of
from unetsharp.infer.images import Header, Picture, Slide, open_slide, probe, read_picture
from unetsharp.infer.inputs import InputFile
from unetsharp.infer.resolution import Scale
from unetsharp.infer.segmentation import Found, Settings, segment
from unetsharp.infer.slides import segment_slide
from unetsharp.infer.tiling import Grid, overlap_of
from unetsharp.infer.unfinished import Unfinished
from unetsharp.outputs import geojson, mask, overlay, record, tables
from unetsharp.outputs.folder import check_folder
from unetsharp.own_code import code_sha256
from unetsharp_engines.contract import MPP
from unetsharp_engines.errors import InputError, MissingCapabilityError, UnetSharpError
from unetsharp_engines.files import sha256_of
from unetsharp_engines.runtimes.base import Runtime

if TYPE_CHECKING:
    from unetsharp.cli.output import Advance, Output

__all__ = ["FORMATS", "Run", "parse_formats"]


@dataclass(frozen=True)
class _Format:
    ending: str
    write: Callable[[Found, Path], None]


FORMATS: dict[str, _Format] = {
    "geojson": _Format(".geojson", geojson.write),
    "csv": _Format(".csv", tables.write_nuclei),
    "overlay": _Format("_overlay.png", overlay.write),
    "mask": _Format("_mask.png", mask.write),
}
"""What ``--formats`` takes."""

SAME_MPP = 0.02
"""Share by which ``--mpp`` may differ from what a file states without a warning: 0.5 is said of 0.499."""

RECORD_EVERY_S = 10.0
"""A killed run loses at most this many seconds of finished pictures, beside the one it was at."""


def parse_formats(text: str) -> tuple[str, ...]:
    """``geojson,csv`` → the formats named, in `FORMATS`' order. InputError for a name that is none of them."""
    names = {name.strip() for name in text.split(",")}
    if not names <= FORMATS.keys():
        raise InputError(f"--formats {text}: it takes {','.join(FORMATS)}, or some of them")
    return tuple(name for name in FORMATS if name in names)


class Run:
    """One run of ``infer``."""

    def __init__(
        self,
        runtime: Runtime,
        settings: Settings,
        *,
        mpp: float | None,
        formats: Sequence[str],
        folder: Path,
        model: dict[str, Any],
        arguments: dict[str, Any],
        output: "Output",
    ) -> None:
        """Prepare a run that writes to ``folder``, made if need be.

        InputError if that cannot be written to, or if the overlap does not fit the network's tiles.
        ``mpp`` is what the user stated, None for what each file says; ``model`` is `record.about_model`;
        ``arguments`` are recorded as given.
        """
        self._runtime = runtime
        self._settings = settings
        self._mpp = mpp
        self._formats = tuple(formats)
        self._folder = folder
        self._model = model
        self._code = code_sha256()
        self._output = output
        self._resume = False
        self._warned: Counter[str] = Counter()
        self._recorded_at = time.monotonic()
        self._entries: dict[str, dict[str, Any] | None] = {}
        """What is recorded of each picture, by its name, in the order of the inputs; None while it waits."""
        self.record: dict[str, Any] = {
            "command": "infer",
            "arguments": arguments,
            "started": record.now(),
            "finished": None,
            "exit_status": None,
            "model": model,
            "tiling": {"tile": runtime.info.tile, "overlap": overlap_of(settings.overlap, runtime.info.tile)},
            **record.about_system(runtime),
            "pictures": [],
        }
        """What ``run.json`` holds; ``exit_status`` is null while the run goes on."""
        Grid.over((1, 1), tile=runtime.info.tile, overlap=settings.overlap)
        check_folder(folder, "-o")

    @property
    def failures(self) -> list[dict[str, Any]]:
        """Records of the pictures that could not be segmented."""
        return [p for p in self._recorded() if "error" in p]

    @property
    def done(self) -> list[dict[str, Any]]:
        """Records of the others."""
        return [p for p in self._recorded() if "error" not in p]

    def over(self, inputs: Sequence[InputFile], *, resume: bool) -> None:
        """Segment each input and write its outputs, then the counts; the record is kept up whatever happens.

        With ``resume`` pictures whose outputs the folder's record calls complete, for this file, model and these
        settings, are kept.
        """
        self._resume = resume
        kept = self._finished_before(inputs) if resume else {}
        work = [(file, self._tiles(file)) for file in inputs if file.name not in kept]
        self._entries = dict.fromkeys((file.name for file in inputs), None) | kept
        if resume:
            self._output.say(f"Resuming: {len(kept)} of {len(inputs)} pictures are done already")
        try:
            with self._output.progress("Segmenting", sum(tiles for _, tiles in work)) as advance:
                for file, tiles in work:
                    self._one(file, _Share(advance, tiles, file.name))
            self.record["exit_status"] = min((failure["exit_status"] for failure in self.failures), default=0)
        except KeyboardInterrupt:
            self.record["exit_status"] = 130
            raise
        finally:
            self._finish()

    def _one(self, file: InputFile, advance: "_Share") -> None:
        try:
            entry = self._segmented(file, advance)
        except (InputError, MissingCapabilityError) as error:
            line = _named(file, error)
            self._output.error(line)
            entry = {"picture": file.name, "path": str(file.path), "error": line, "exit_status": error.exit_code}
        advance.complete()
        self._entries[file.name] = entry
        if time.monotonic() - self._recorded_at > RECORD_EVERY_S:
            self._write_record()

    def _segmented(self, file: InputFile, advance: Callable[[int], None]) -> dict[str, Any]:
        slide = open_slide(file.path)
        if slide is None:
            return self._whole(file, advance)
        with slide:
            return self._by_fields(file, slide, advance)

    def _whole(self, file: InputFile, advance: Callable[[int], None]) -> dict[str, Any]:
        start = time.perf_counter()
        picture = read_picture(file.path)
        read_s = time.perf_counter() - start
        mpp, source = self._resolution(picture)
        result = segment(picture.pixels, self._runtime, self._settings, mpp=mpp, advance=advance)
        result.seconds["read"] = read_s
        notes = (*self._resolution_warning(picture.mpp), *picture.notes)
        return self._entry(file, sha256_of(file.path), result, source, notes)

    def _by_fields(self, file: InputFile, slide: Slide, advance: Callable[[int], None]) -> dict[str, Any]:
        digest = sha256_of(file.path)
        mpp, source = self._resolution(slide)
        unfinished = Unfinished(
            self._folder / f"{file.name}.unfinished",
            fingerprint=self._fingerprint(digest),
            classes_of=(slide.height, slide.width) if "mask" in self._formats else None,
            resume=self._resume,
        )
        result = segment_slide(
            slide, self._runtime, self._settings, mpp=mpp, file_sha256=digest, unfinished=unfinished, advance=advance
        )
        entry = self._entry(file, digest, result, source, self._resolution_warning(slide.mpp))
        del result  # it maps a file of the folder, which Windows would not let go
        unfinished.remove()
        return entry

    def _entry(self, file: InputFile, digest: str, result: Found, source: str, notes: Sequence[str]) -> dict[str, Any]:
        """Write the outputs; what is recorded of a picture."""
        start = time.perf_counter()
        outputs = self._written(file, result)
        seconds = {**result.seconds, "write": time.perf_counter() - start}
        warnings = [*notes, *result.warnings]
        self._warn(file, warnings)
        return {
            "picture": file.name,
            "path": str(file.path),
            "sha256": digest,
            "fingerprint": self._fingerprint(digest),
            **_about(result),
            "mpp_from": source,
            "outputs": outputs,
            "seconds": {stage: round(value, 4) for stage, value in seconds.items()},
            "warnings": warnings,
        }

    def _written(self, file: InputFile, result: Found) -> dict[str, str]:
        names = {name: file.name + FORMATS[name].ending for name in self._formats}
        if "mask" in names:
            names["mask"] = str(Path(names["mask"]).with_suffix(mask.suffix(result)))
        for name, output_name in names.items():
            FORMATS[name].write(result, self._folder / output_name)
        return names

    def _resolution(self, header: Header | Picture | Slide) -> tuple[float, str]:
        if self._mpp is not None:
            return self._mpp, "--mpp"
        return (header.mpp, "file") if header.mpp else (MPP, "assumed")

    def _resolution_warning(self, stated: float | None) -> list[str]:
        if self._mpp is None and stated is None:
            return [f"its resolution is not stated: {MPP} µm/px (a 40× scan) is assumed; give --mpp if it is another"]
        if self._mpp and stated and abs(self._mpp / stated - 1) > SAME_MPP:
            return [f"it states {stated:g} µm/px, and --mpp {self._mpp:g} is used; leave --mpp out to believe the file"]
        return []

    def _warn(self, file: InputFile, warnings: list[str]) -> None:
        """Tell each warning once, with the first picture that has it; the record has them all."""
        for text in warnings:
            if not self._warned[text]:
                self._output.warn(f"{file.path}: {text}")
            self._warned[text] += 1

    def _tiles(self, file: InputFile) -> int:
        """Tiles a picture will take, 0 for one that cannot be read: that is told in its turn."""
        try:
            slide = open_slide(file.path)
            if slide is None:
                return self._grid(probe(file.path)).tiles
            with slide:
                return sum(field.grid.tiles for field in fields_of(self._grid(slide)))
        except UnetSharpError:
            return 0

    def _grid(self, header: Header | Slide) -> Grid:
        scale = Scale(header.height, header.width, self._resolution(header)[0])
        return Grid.over(scale.network_size, tile=self._runtime.info.tile, overlap=self._settings.overlap)

    def _fingerprint(self, digest: str) -> str:
        """Equal for equal results: the file (SHA-256 ``digest``), model, code, packages, device, settings."""
        stain = self._settings.stain
        facts = [
            digest, self._model["sha256"], self._code, self.record["packages"], self.record["runtime"],
            self._mpp, stain.scope.value, stain.transform.digest, self.record["tiling"], self._formats,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _finished_before(self, inputs: Sequence[InputFile]) -> dict[str, dict[str, Any]]:
        earlier = {p["picture"]: p for p in record.read_pictures(self._folder) if "fingerprint" in p}
        return {
            file.name: earlier[file.name]
            for file in inputs
            if file.name in earlier
            and all((self._folder / name).is_file() for name in earlier[file.name]["outputs"].values())
            and earlier[file.name]["fingerprint"] == self._fingerprint(sha256_of(file.path))
        }

    def _finish(self) -> None:
        for text, times in self._warned.items():
            if times > 1:
                self._output.warn(f"and {times - 1} more picture{'s' * (times > 2)}: {text}")
        tables.write_counts(self.done, self._folder / "counts.csv")
        self.record["finished"] = record.now()
        self._write_record()

    def _recorded(self) -> list[dict[str, Any]]:
        return [entry for entry in self._entries.values() if entry is not None]

    def _write_record(self) -> None:
        self.record["pictures"] = self._recorded()
        record.write(self.record, self._folder)
        self._recorded_at = time.monotonic()


class _Share:
    """One picture's part of the progress bar: it ends where it was planned to, whatever happens to the picture."""

    def __init__(self, advance: "Advance", planned: int, text: str) -> None:
        self._advance = advance
        self._left = planned
        advance(0, text)

    def __call__(self, tiles: int) -> None:
        self._left -= tiles
        self._advance(tiles)

    def complete(self) -> None:
        self._advance(self._left)


def _about(result: Found) -> dict[str, Any]:
    height, width = result.size
    transform = result.stain.plan.transform
    return {
        "width": width,
        "height": height,
        "mpp": result.mpp,
        "area_mm2": result.area_mm2,
        "counts": result.counts,
        "stain": {
            "scope": result.stain.scope.value,
            "status": None if result.stain.status is None else result.stain.status.value,
            "matrix": transform.matrix.tolist(),
            "offset": transform.offset.tolist(),
        },
    }


def _named(file: InputFile, error: UnetSharpError) -> str:
    """The error's line, with the file's name in front if it is not there yet."""
    line = str(error)
    return line if str(file.path) in line else f"{file.path}: {line}"
