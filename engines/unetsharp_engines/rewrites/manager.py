"""Running passes over a model, with an account of each."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

from onnx import ModelProto

from unetsharp_engines.errors import InputError
from unetsharp_engines.rewrites.cost import Cost, total_cost
from unetsharp_engines.rewrites.graph import Graph
from unetsharp_engines.rewrites.passes import PASSES, PORTABLE

__all__ = ["REWRITES_KEY", "PassReport", "RewriteReport", "rewrite"]

REWRITES_KEY = "unetsharp.rewrites"
"""Key in ONNX ``metadata_props`` under which a rewritten network lists what was done, as `RewriteReport.to_json`."""


@dataclass(frozen=True, kw_only=True)
class PassReport:
    """What one pass did."""

    name: str
    sites: tuple[str, ...]
    """Names of the nodes it rewrote, as they were called before."""
    note: str
    """What it passed over and why; never empty where it found no site."""
    macs_saved: int
    """Multiply-accumulates per image; negative where it spends some."""
    bytes_saved: int
    """Bytes per image, counted as `cost.Cost` says; negative where it moves more."""


@dataclass(frozen=True, kw_only=True)
class RewriteReport:
    """What was done to a network, in order, and what it costs per image before and after."""

    before: Cost
    after: Cost
    passes: tuple[PassReport, ...]
    max_height: int | None = None
    """Largest input height, pixels, for which the graph still says what the network says; None if any."""
    max_width: int | None = None
    """The same of the width."""

    def to_json(self) -> str:
        """One JSON object, keys sorted."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "RewriteReport":
        """Parse what `to_json` wrote; KeyError, TypeError or json.JSONDecodeError for other text."""
        fields = json.loads(text)
        fields["passes"] = tuple(PassReport(**{**p, "sites": tuple(p["sites"])}) for p in fields["passes"])
        return cls(**{**fields, "before": Cost(**fields["before"]), "after": Cost(**fields["after"])})


def rewrite(model: ModelProto, names: Sequence[str] = PORTABLE) -> tuple[ModelProto, RewriteReport]:
    """Apply the passes ``names`` in their order; returns a new model, the report also in its metadata.

    What the network computes stays the same but for rounding; proofs are in the passes' docstrings. A model that was
    rewritten before keeps its account, the new passes behind it. Raises InputError for a name that is no pass, and for
    a model whose height and width are not fixed: what is exact, and what it saves, depends on them.
    """
    if unknown := [name for name in names if name not in PASSES]:
        raise InputError(f"no rewrite is called {unknown[0]!r}; there are {', '.join(PASSES)}")
    graph = Graph(model)
    report = _earlier(graph)
    for name in names:
        report = _applied(graph, name, report)
    graph.set_metadata(REWRITES_KEY, report.to_json())
    return graph.model(), report


def _earlier(graph: Graph) -> RewriteReport:
    """The account in the model, or an empty one."""
    if text := graph.metadata().get(REWRITES_KEY):
        return RewriteReport.from_json(text)
    cost = total_cost(graph)
    return RewriteReport(before=cost, after=cost, passes=())


def _applied(graph: Graph, name: str, report: RewriteReport) -> RewriteReport:
    outcome = PASSES[name](graph)
    after = total_cost(graph)
    saved = report.after - after
    done = PassReport(name=name, sites=outcome.sites, note=outcome.note, macs_saved=saved.macs, bytes_saved=saved.bytes)
    height, width = outcome.max_sides
    return dataclasses.replace(
        report,
        after=after,
        passes=(*report.passes, done),
        max_height=_least(report.max_height, height),
        max_width=_least(report.max_width, width),
    )


def _least(*bounds: int | None) -> int | None:
    return min((bound for bound in bounds if bound is not None), default=None)
