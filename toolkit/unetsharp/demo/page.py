"""The demo's page: one static HTML file beside the picture, to be opened in any browser."""

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from unetsharp.demo.steps import DRIFT_FOLDER, NUCLEI_FOLDER, Step
from unetsharp_engines.contract import NUCLEUS_CLASSES, TissueClass
from unetsharp_engines.files import replacing

__all__ = ["PAGE_NAME", "PICTURE_NAME", "write_page"]

PAGE_NAME, PICTURE_NAME = "index.html", "overlay.jpg"

_PICTURE_WIDTH = 1200
_JPEG_QUALITY = 62
"""With this width and whole chroma, which outlines need, some 250 KB: the picture also heads the README."""


def write_page(out: Path, steps: Sequence[Step]) -> Path:
    """Write `PAGE_NAME` and `PICTURE_NAME` into ``out`` from the steps' results; returns the page's path."""
    record = steps[-1].result
    picture = record["pictures"][0]
    outputs = {kind: Path(NUCLEI_FOLDER) / name for kind, name in picture["outputs"].items()}
    _write_picture(out / outputs["overlay"], out / PICTURE_NAME)
    text = Template(files("unetsharp.demo").joinpath("page.html").read_text(encoding="utf-8")).substitute(
        total=f"{sum(picture['counts'].values()):,}",
        picture=PICTURE_NAME,
        counts="\n".join(_count_row(c, picture["counts"]) for c in NUCLEUS_CLASSES),
        steps="\n".join(_step_row(step) for step in steps),
        stages="\n".join(_row(escape(stage), f"{seconds:.2f} s") for stage, seconds in picture["seconds"].items()),
        notes="\n".join(f"<li>{escape(note)}</li>" for note in _notes(record, steps)),
        files="\n".join([_drift_link(steps), *(_link(kind, path) for kind, path in outputs.items())]),
        system=escape(_system(record)),
    )
    page = out / PAGE_NAME
    with replacing(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return page


def _write_picture(overlay: Path, path: Path) -> None:
    from PIL import Image

    with Image.open(overlay) as image:
        height = round(image.height * _PICTURE_WIDTH / image.width)
        small = image.resize((_PICTURE_WIDTH, height), Image.Resampling.LANCZOS)
    with replacing(path) as temporary:
        small.save(temporary, format="JPEG", quality=_JPEG_QUALITY, subsampling=0, optimize=True, progressive=True)


def _count_row(tissue_class: TissueClass, counts: dict[str, int]) -> str:
    red, green, blue = tissue_class.color
    chip = f'<span class="chip" style="border-color: rgb({red}, {green}, {blue})"></span>'
    count = counts.get(tissue_class.name)
    shown = '<span class="faint">not taught</span>' if count is None else f"{count:,}"
    return _row(f"{chip}{tissue_class.name}", shown)


def _step_row(step: Step) -> str:
    lacking = f'<br><span class="skipped">{_skipped(step)}: {escape(step.skipped)}</span>' if step.skipped else ""
    what = f"<strong>{step.title}</strong><br><code>{escape(step.command)}</code>{lacking}"
    return _row(what, f"{step.seconds:.1f} s" if step.result else "")


def _skipped(step: Step) -> str:
    return "skipped in part" if step.result else "skipped"


def _drift_link(steps: Sequence[Step]) -> str:
    """To the drift report, where there is one."""
    ran = any("verdict" in step.result for step in steps)
    return _link("what each step changed", Path(DRIFT_FOLDER) / "report.html") if ran else ""


def _row(*cells: str) -> str:
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _link(kind: str, path: Path) -> str:
    return f'<li><a href="{escape(path.as_posix(), quote=True)}">{escape(path.as_posix())}</a> ({escape(kind)})</li>'


def _notes(record: Any, steps: Sequence[Step]) -> Iterable[str]:
    model = record["model"]
    if model["untaught"]:
        yield f"{model['name']} was never taught {' and '.join(model['untaught'])}; it calls them something else"
    yield from record["pictures"][0]["warnings"]
    yield from (f"{step.title} was {_skipped(step)}: {step.skipped}" for step in steps if step.skipped)
    yield "Research use only: this is no medical device."


def _system(record: Any) -> str:
    runtime = record["runtime"]
    ran_on = f"{runtime['name']} {runtime['version']} on {runtime['device']}"
    return f"unetsharp {record['unetsharp']}, {ran_on}, {record['platform']}"
