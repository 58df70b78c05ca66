"""What the bench found, for people: tables, and a chart in SVG."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetsharp_engines.files import replacing

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

__all__ = ["chart", "tables", "write"]

_Entry = Mapping[str, Any]
_COLORS = ("#1f5fa8", "#c8702a", "#3a8a4d", "#8a4fa0", "#a83c3c", "#5a5a5a")
_WIDTH, _LABELS, _NUMBERS, _BAR, _ROW = 720, 200, 110, 18, 24


def tables(record: Mapping[str, Any]) -> "RenderableType":
    """Throughput of all, then the stages and further numbers of those that were taken apart."""
    from rich.console import Group
    from rich.text import Text

    entries = record["contestants"]
    apart = [entry for entry in entries if "from_files" in entry]
    stain = "each tile's own stain estimate" if record["stain"] == "tile" else "without stain normalization"
    parts: list[RenderableType] = [Text(f"From host memory to host memory, {stain}", "bold"), _throughput(entries)]
    parts += ["", Text("One tile alone", "bold"), _latencies(entries)]
    for entry in apart:
        parts += ["", Text(f"{entry['name']}: milliseconds a batch by stage", "bold"), _stages(entry)]
        parts += [Text(line) for line in _lines(entry)]
    if record["stain_step_s"]:
        parts += [
            "",
            Text("Stain estimation and normalization of one tile", "bold"),
            _stain_step(record["stain_step_s"]),
        ]
    return Group(*parts)


def chart(record: Mapping[str, Any]) -> str:
    """An SVG picture: a bar of tiles a second for each contestant and batch; stages of the first below."""
    entries: Sequence[_Entry] = record["contestants"]
    rows = [*_rate_rows(entries), *_stage_rows(entries[0])]
    height = _ROW * len(rows) + 20
    drawn = "\n".join(row.draw(10 + _ROW * index) for index, row in enumerate(rows))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{drawn}\n</svg>\n'
    )


def write(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ``bench.json`` and ``bench.svg`` to ``folder``."""
    content = {"bench.json": json.dumps(record, indent=1, ensure_ascii=False) + "\n", "bench.svg": chart(record)}
    paths = [folder / name for name in content]
    for path, text in zip(paths, content.values(), strict=True):
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return paths


def _throughput(entries: Sequence[_Entry]) -> "Table":
    """``ratio`` is how many times faster the first is; energy is shown where any was read."""
    energy = any(row["joules_per_tile"] is not None for entry in entries for row in entry["batches"].values())
    table = _table("", "batch", "tiles/s", "least–most", "ratio", *["mJ/tile"] * energy)
    for entry in entries:
        name = entry["name"]
        for batch, row in entry["batches"].items():
            ratio, joules = row.get("first_is_faster_by"), row["joules_per_tile"]
            cells = [
                _number(row["tiles_per_s"]),
                f"{_number(row['least'])}–{_number(row['most'])}",
                f"{ratio:.2f}" if ratio else "",
                f"{1e3 * joules:.1f}" if joules is not None else "",
            ]
            table.add_row(name, batch, *(cells if energy else cells[:-1]))
            name = ""
    return table


def _latencies(entries: Sequence[_Entry]) -> "Table":
    table = _table("", "p50 ms", "p99 ms")
    for entry in entries:
        table.add_row(entry["name"], *(f"{1e3 * entry['latency_s'][name]:.2f}" for name in ("p50", "p99")))
    return table


def _stages(entry: _Entry) -> "Table":
    stages = {batch: row["stage_s"] for batch, row in entry["batches"].items() if "stage_s" in row}
    names = list(next(iter(stages.values()), {}))
    table = _table("", "batch", *names, "sum")
    for batch, seconds in stages.items():
        numbers = (*(seconds[name] for name in names), sum(seconds.values()))
        table.add_row("", batch, *(f"{1e3 * value:.3f}" for value in numbers))
    return table


def _stain_step(seconds: Mapping[str, float]) -> "Table":
    table = _table("", "ms")
    for name, value in seconds.items():
        table.add_row(name, f"{1e3 * value:.3f}")
    return table


def _lines(entry: _Entry) -> Iterator[str]:
    files = entry["from_files"]
    yield f"  from PNG files: {_number(files['tiles_per_s'])} tiles/s, batch {files['batch']}"
    if "roofline" in entry:
        roof = entry["roofline"]
        parts = [f"{share:.0%} of peak {name}" for name, share in roof["share"].items() if share is not None]
        cost = f"{roof['macs_per_tile'] / 1e9:.2f} GMAC, {roof['bytes_per_tile'] / 1e6:.0f} MB if nothing fuses"
        yield f"  a tile: {cost}"
        yield f"  roofline: {', '.join(parts) or 'peak not known'} ({roof['peak_from']})"
    yield f"  energy: {entry['energy']}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _table(*headers: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for header in headers:
        table.add_column(header, header_style="dim", justify="right" if header else "left", no_wrap=True)
    return table


@dataclass(frozen=True)
class _Heading:
    """A line of the chart."""

    text: str

    def draw(self, top: int) -> str:
        return f'<text x="10" y="{top + 14}" font-weight="bold">{escape(self.text)}</text>'


@dataclass(frozen=True)
class _Bar:
    """A row of the chart: a label, a bar in parts, a number."""

    label: str
    parts: Sequence[tuple[float, str]]
    """Each its share of the longest bar, and its colour."""
    number: str = ""

    def draw(self, top: int) -> str:
        full, left = _WIDTH - _LABELS - _NUMBERS - 20, float(_LABELS)
        drawn = [f'<text x="{_LABELS - 8}" y="{top + 13}" text-anchor="end">{escape(self.label)}</text>']
        for share, color in self.parts:
            drawn.append(f'<rect x="{left:.1f}" y="{top}" width="{share * full:.1f}" height="{_BAR}" fill="{color}"/>')
            left += share * full
        drawn.append(f'<text x="{left + 6:.1f}" y="{top + 13}">{escape(self.number)}</text>')
        return "\n".join(drawn)


def _rate_rows(entries: Sequence[_Entry]) -> "Iterator[_Bar | _Heading]":
    most = max(row["tiles_per_s"] for entry in entries for row in entry["batches"].values())
    for batch in entries[0]["batches"]:
        yield _Heading(f"Tiles a second, batch {batch}")
        for index, entry in enumerate(entries):
            rate = entry["batches"][batch]["tiles_per_s"]
            yield _Bar(entry["name"], [(rate / most, _COLORS[index % len(_COLORS)])], _number(rate))


def _stage_rows(entry: _Entry) -> "Iterator[_Bar | _Heading]":
    stages = {batch: row["stage_s"] for batch, row in entry["batches"].items() if "stage_s" in row}
    if not stages:
        return
    names = list(next(iter(stages.values())))
    most = max(sum(seconds.values()) / int(batch) for batch, seconds in stages.items())
    yield _Heading(f"Milliseconds a tile by stage: {entry['name']}")
    for batch, seconds in stages.items():
        shares = [(seconds[n] / int(batch) / most, _COLORS[i % len(_COLORS)]) for i, n in enumerate(names)]
        yield _Bar(f"batch {batch}", shares, f"{1e3 * sum(seconds.values()) / int(batch):.2f} ms")
    for index, name in enumerate(names):
        yield _Bar(name, [(0.02, _COLORS[index % len(_COLORS)])])
