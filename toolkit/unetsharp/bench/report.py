"""What the bench found, for people: tables, and a chart in SVG."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetsharp.outputs.folder import write_files

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

__all__ = ["chart", "tables", "write"]

_Entry = Mapping[str, Any]
_COLORS = ("#1f5fa8", "#c8702a", "#3a8a4d", "#8a4fa0", "#a83c3c", "#5a5a5a")
_WIDTH, _LABELS, _NUMBERS, _BAR, _ROW = 720, 200, 110, 18, 24
_LONGEST = 29
"""Letters of a label that fit into `_LABELS`."""


def tables(record: Mapping[str, Any]) -> "RenderableType":
    """Throughput of all, then the stages and further numbers of those that were taken apart."""
    from rich.console import Group
    from rich.text import Text

    entries = record["contestants"]
    apart = [entry for entry in entries if "from_files" in entry]
    stain = "each tile's own stain estimate" if record["stain"] == "tile" else "without stain normalization"
    parts: list[RenderableType] = [Text(_machine(record["system"])), ""]
    parts += [Text(f"From host memory to host memory, {stain}", "bold"), _throughput(entries)]
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
    """An SVG picture: a bar of tiles a second for each contestant and batch, with its spread; stages of the first."""
    entries: Sequence[_Entry] = record["contestants"]
    where = _Note(f"{_machine(record['system'])}, {record['started'][:10]}")
    rows = [where, *_rate_rows(entries), *_stage_rows(entries[0])]
    height = _ROW * len(rows) + 20
    drawn = "\n".join(row.draw(10 + _ROW * index) for index, row in enumerate(rows))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{drawn}\n</svg>\n'
    )


def write(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ``bench.json`` and ``bench.svg`` to ``folder``, both or neither. Raises InputError as `write_files`."""
    texts = {"bench.json": json.dumps(record, indent=1, ensure_ascii=False) + "\n", "bench.svg": chart(record)}
    contents = {folder / name: text.encode() for name, text in texts.items()}
    write_files(contents, "-o")
    return list(contents)


def _machine(system: Mapping[str, Any]) -> str:
    gpus = [gpu["name"] for gpu in system["gpus"]]
    return ", ".join([*gpus, system["processor"], f"{system['cores']} cores", f"unetsharp {system['unetsharp']}"])


def _throughput(entries: Sequence[_Entry]) -> "Table":
    """Energy is shown where any was read."""
    energy = any(row["joules_per_tile"] is not None for entry in entries for row in entry["batches"].values())
    table = _table("", "batch", "tiles/s", "least–most", "first is", *["mJ/tile"] * energy)
    for entry in entries:
        name = entry["name"]
        for batch, row in entry["batches"].items():
            ratio, joules = row.get("first_is_faster_by"), row["joules_per_tile"]
            cells = [
                _number(row["tiles_per_s"]),
                f"{_number(row['least'])}–{_number(row['most'])}",
                f"{ratio:.2f}× as fast" if ratio else "",
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
        cost = f"{roof['macs_per_tile'] / 1e9:.2f} GMAC, {roof['bytes_per_tile'] / 1e6:.0f} MB if nothing fuses"
        yield f"  a tile: {cost}"
        yield f"  roofline: {_shares(roof) or 'peak not known'}"
        yield f"    ({roof['peak_from']})"
    yield f"  energy: {entry['energy']}"


def _shares(roof: Mapping[str, Any]) -> str:
    peaks = {"compute": (roof["peak_macs_per_s"], "GMAC/s"), "traffic": (roof["peak_bytes_per_s"], "GB/s")}
    return ", ".join(
        f"{share:.0%} of {_number(peaks[name][0] / 1e9)} {peaks[name][1]}"
        for name, share in roof["share"].items()
        if share is not None
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _table(*headers: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for header in headers:
        table.add_column(header, header_style="dim", justify="right" if header else "left", no_wrap=True)
    return table


@dataclass(frozen=True)
class _Note:
    """A line of the chart."""

    text: str
    weight: str = "normal"

    def draw(self, top: int) -> str:
        return f'<text x="10" y="{top + 14}" font-weight="{self.weight}">{escape(self.text)}</text>'


@dataclass(frozen=True)
class _Bar:
    """A row of the chart: a label, a bar in parts, a number behind it."""

    label: str
    parts: Sequence[tuple[float, str]]
    """Each its share of the longest bar, and its colour."""
    number: str
    spread: tuple[float, float] | None = None
    """Least and most, as shares of the longest bar."""

    def draw(self, top: int) -> str:
        drawn = [f'<text x="{_LABELS - 8}" y="{top + 13}" text-anchor="end">{escape(_shortened(self.label))}</text>']
        left = 0.0
        for share, color in self.parts:
            drawn.append(_rectangle(left, share, top, color))
            left += share
        drawn += [_whisker(*self.spread, top)] if self.spread else []
        end = max(left, *(self.spread or (0.0,)))
        drawn.append(f'<text x="{_x(end) + 6:.1f}" y="{top + 13}">{escape(self.number)}</text>')
        return "\n".join(drawn)


@dataclass(frozen=True)
class _Legend:
    """A row that says what each colour is."""

    names: Sequence[str]

    def draw(self, top: int) -> str:
        drawn, left = [], 0.0
        for name, color in zip(self.names, cycle(_COLORS), strict=False):
            drawn.append(_rectangle(left, 0.03, top, color))
            drawn.append(f'<text x="{_x(left + 0.04):.1f}" y="{top + 13}">{escape(name)}</text>')
            left += 0.2
        return "\n".join(drawn)


def _x(share: float) -> float:
    """Where a share of the longest bar ends."""
    return _LABELS + share * (_WIDTH - _LABELS - _NUMBERS - 20)


def _rectangle(left: float, share: float, top: int, color: str) -> str:
    return f'<rect x="{_x(left):.1f}" y="{top}" width="{_x(share) - _LABELS:.1f}" height="{_BAR}" fill="{color}"/>'


def _whisker(least: float, most: float, top: int) -> str:
    middle = top + _BAR // 2
    ends = "".join(f"M{_x(share):.1f} {top + 4}v{_BAR - 8}" for share in (least, most))
    return f'<path d="M{_x(least):.1f} {middle}H{_x(most):.1f}{ends}" stroke="black" fill="none"/>'


def _shortened(label: str) -> str:
    """Its end: paths differ there."""
    return label if len(label) <= _LONGEST else f"…{label[1 - _LONGEST :]}"


_Row = _Note | _Bar | _Legend


def _rate_rows(entries: Sequence[_Entry]) -> Iterator[_Row]:
    most = max(row["most"] for entry in entries for row in entry["batches"].values())
    for batch in entries[0]["batches"]:
        yield _Note(f"Tiles a second, batch {batch}: median, least and most of its turns", "bold")
        for entry, color in zip(entries, cycle(_COLORS), strict=False):
            row = entry["batches"][batch]
            spread = row["least"] / most, row["most"] / most
            yield _Bar(entry["name"], [(row["tiles_per_s"] / most, color)], _number(row["tiles_per_s"]), spread)


def _stage_rows(entry: _Entry) -> Iterator[_Row]:
    stages = {batch: row["stage_s"] for batch, row in entry["batches"].items() if "stage_s" in row}
    if not stages:
        return
    most = max(sum(seconds.values()) / int(batch) for batch, seconds in stages.items())
    yield _Note(f"Milliseconds a tile by stage: {entry['name']}", "bold")
    for batch, seconds in stages.items():
        shares = [value / int(batch) / most for value in seconds.values()]
        number = f"{1e3 * sum(seconds.values()) / int(batch):.2f} ms"
        yield _Bar(f"batch {batch}", list(zip(shares, cycle(_COLORS), strict=False)), number)
    yield _Legend(list(next(iter(stages.values()))))
