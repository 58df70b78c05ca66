"""What `diagnose` found, as tables for people."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

__all__ = ["tables_of"]

_YES, _NO = "[green]✓[/]", "[red]✗[/]"


def tables_of(facts: Mapping[str, Any]) -> RenderableType:
    """Tables for the result of `unetsharp.diagnosis.diagnose`."""
    return Group(_machine(facts), "", _packages(facts["packages"]), "", _commands(facts["commands"]))


def _table(title: str, *headers: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for header in headers:
        table.add_column(header, header_style="dim", overflow="fold")
    return table


def _machine(facts: Mapping[str, Any]) -> Table:
    table = _table(f"unetsharp {facts['unetsharp']} on this machine", "", "")
    table.show_header = False
    for name, value in _machine_rows(facts["machine"]):
        table.add_row(name, escape(value))
    return table


def _machine_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "system", f"{found['system']}, Python {found['python']}"
    memory = f"{found['memory_bytes'] / 2**30:.1f} GiB" if found["memory_bytes"] else "unknown"
    yield "processor", f"{found['cores']} cores, {memory} memory"
    if found["jetson"]:
        yield "Jetson", found["jetson"]
    for gpu in found["gpus"]:
        yield "GPU", f"{gpu['name']}, {gpu['target']}, {gpu['memory_bytes'] / 2**30:.1f} GiB"
    if not found["gpus"]:
        yield "GPU", "none that NVIDIA's driver shows"
    yield "driver", f"{found['driver'] or 'version unknown'}, up to CUDA {found['cuda']}" if found["cuda"] else "none"
    yield "engine key", found["engine_key"] or "none yet: the first build-engine makes it, to know its engines again"


def _packages(entries: list[Mapping[str, Any]]) -> Table:
    table = _table("Packages", "", "package", "version", "for", "")
    for entry in entries:
        mark = _YES if entry["version"] else "[dim]–[/]"
        table.add_row(mark, entry["package"], entry["version"] or "missing", entry["purpose"], escape(entry["note"]))
    return table


def _commands(entries: list[Mapping[str, Any]]) -> Table:
    table = _table("Commands", "", "unetsharp …", "does")
    for entry in entries:
        table.add_row(_YES if entry["works"] else _NO, entry["command"], entry["does"])
        if not entry["works"]:
            table.add_row("", "", f"[yellow]lacks {escape(', '.join(entry['missing']))}[/]\n→ {escape(entry['get'])}")
    return table
