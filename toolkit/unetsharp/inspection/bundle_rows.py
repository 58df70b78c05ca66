"""What is told of a bundle, as rows of name and value."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["bundle_rows", "drift_told"]

_Row = tuple[str, str]

_MOST_LAYERS = 12
"""Names that are shown; JSON has all."""


def bundle_rows(facts: Mapping[str, Any]) -> Iterator[_Row]:
    """Rows for the facts of `unetsharp.inspection.bundle`, but for the network's own."""
    manifest = facts["manifest"]
    yield "made", f"{manifest['created']} by unetsharp {manifest['tool_version']}"
    yield from _numbers(manifest)
    yield "ONNX", _entry(manifest["onnx"])
    for engine, seen in zip(manifest["engines"], facts["engines"], strict=True):
        yield from _engine(engine, seen, manifest["precision"])
    yield "verified", "; ".join(facts["problems"]) or "every file has the size and SHA-256 that the manifest says"
    yield "runs here on", ", ".join(facts["runs_on"]) or "nothing"


def _numbers(manifest: Mapping[str, Any]) -> Iterator[_Row]:
    """What goes in, what comes out, and how exactly it is computed."""
    contract, target = manifest["contract"], manifest["stain_target"]
    yield "contract", f"{contract['input']}: RGB × {contract['bytes_to_unit']:.7f} → {contract['output']}"
    stains = zip(
        ("hematoxylin", "eosin"), zip(*target["stains"], strict=True), target["max_concentrations"], strict=True
    )
    told = (f"{name} ({', '.join(f'{value:g}' for value in column)}) up to {most:g}" for name, column, most in stains)
    yield "stain target", f"white {target['white']:g}, {', '.join(told)}"
    yield "precision", manifest["precision"]
    if manifest["layers"]:
        yield "layers", _layers(manifest["layers"])
    if manifest["quantization"] is not None:
        yield from _quantization(manifest["quantization"])


def _layers(layers: Mapping[str, str]) -> str:
    """How many layers have which precision, and the names of those that have not the most common one."""
    (common, _), *others = (counts := Counter(layers.values())).most_common()
    names = [name for name, precision in layers.items() if precision != common]
    told = ", ".join(names[:_MOST_LAYERS]) + (", … (all with --json)" if len(names) > _MOST_LAYERS else "")
    numbers = ", ".join(f"{count} in {precision}" for precision, count in counts.most_common())
    return f"{numbers} ({' and '.join(name for name, _ in others)}: {told})" if names else numbers


def _quantization(record: Mapping[str, Any]) -> Iterator[_Row]:
    """What `unetsharp quantize` left, as far as it is there and of its type: the record may be another version's."""
    method, images, digest = (record.get(key) for key in ("method", "images", "images_sha256"))
    yield "calibration", f"{method} over {images} images, SHA-256 {str(digest)[:12]}…"
    if drift := drift_told(record):
        yield "drift", drift


def drift_told(record: Mapping[str, Any]) -> str:
    """What INT8 costs, by the ``record`` of `unetsharp quantize`; empty where that does not say so."""
    drift = record.get("drift")
    keys = ("float_dice", "int8_dice", "agreement", "images")
    if not isinstance(drift, Mapping) or not all(type(drift.get(key)) in (int, float) for key in keys):
        return ""
    before, after, agreement, held_out = (drift[key] for key in keys)
    dice = f"foreground Dice {before:.4f} → {after:.4f}"
    return f"{dice}, {agreement:.2%} of pixels keep their class, on {held_out} other images"


def _engine(engine: Mapping[str, Any], seen: Mapping[str, Any], precision: str) -> Iterator[_Row]:
    cuda = f", CUDA {engine['cuda']}" if engine["cuda"] else ""
    gpu = f", on {engine['gpu']}" if engine["gpu"] else ""
    later = " or later" if engine["version_compatible"] else ""
    newer = " and every GPU from sm80 on" if engine["ampere_plus"] else ""
    yield "engine", f"{_entry(engine['file'])}, {precision}"
    yield "  made by", f"{engine['runtime']} {engine['version']}{cuda}{gpu}, in {engine['seconds']} s"
    yield "  runs on", f"{', '.join(engine['targets'])}{newer}; {engine['version']}{later}; {engine['platform']}"
    if engine["layers"]:
        yield "  layers", _layers(engine["layers"])
    yield "  inputs", " … ".join("×".join(str(n) for n in shape) for shape in engine["profile"].values())
    yield "  options", ", ".join(f"{k} {v}" for k, v in engine["options"].items()) or "the builder's own"
    yield "  trust", "built by you" if seen["trusted"] else "foreign: not built by you here, so it wants --trust"
    yield "  here", "; ".join(seen["here"]) or "fits this machine"


def _entry(entry: Mapping[str, Any]) -> str:
    return f"{entry['path']}, {entry['size'] / 1e6:.2f} MB, SHA-256 {entry['sha256'][:12]}…"
