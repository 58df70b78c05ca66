"""What is to be shown on a GPU: each bar, the step whose result shows it, and how it is read from that."""

import operator
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

import gpu_training
from rewrites_tensorrt import EAGER, INT8, MODES
from stepwise import Found

__all__ = ["BARS", "Bar", "Measured", "Verdict", "verdict_on"]

LARGE = (16, 64)
"""Batch sizes at which engines are compared."""
STILL_BYTES = 8 << 20
"""What memory may change by over 100,000 tiles and count as unchanged: 84 bytes a tile."""
PLAIN, SHOWN = "plain", "tail-less"
STAIN_64 = ("microseconds", "64 tiles", "stain")
COMPILED = {f"torch {mode}" for mode in MODES if mode != EAGER}
APART = "the engines and PyTorch did not meet, so they took no turns"


class Measured(NamedTuple):
    """What a result says."""

    text: str
    holds: bool


Judge = Callable[[Found, str], Measured | str | None]
"""Reads the result of a step. Where that measured nothing: why, or None where it does not tell."""


class Bar(NamedTuple):
    """One line to be shown."""

    name: str
    wanted: str
    steps: tuple[str, ...]
    """Whose results show it: the first that tells."""
    judge: Judge
    beside: tuple[str, ...] = ()
    """Steps whose results the judge looks at, too."""


class Verdict(NamedTuple):
    """A bar beside what was measured."""

    name: str
    wanted: str
    measured: str
    """Empty where nothing was."""
    verdict: str
    """``MET``, ``MISSED`` or ``NOT RUN``."""
    reason: str
    """Why it was not run."""


def verdict_on(bar: Bar, found: Found) -> Verdict:
    """Hold a run to a bar."""
    told_why = []
    for step in bar.steps:
        measured = bar.judge(found, step) if found.outcome(step).ran else None
        if isinstance(measured, Measured):
            return Verdict(bar.name, bar.wanted, measured.text, "MET" if measured.holds else "MISSED", "")
        told_why.append(measured)
    others, own = ([found.outcome(step).reason for step in steps] for steps in (bar.beside, reversed(bar.steps)))
    reason = next(filter(None, (*others, *reversed(told_why), *own)), "the result does not tell")
    return Verdict(bar.name, bar.wanted, "", "NOT RUN", reason)


def told(content: Any, *keys: str) -> Any:
    """What is at the end of the ``keys``; None where one of them is missing."""
    for key in keys:
        if not isinstance(content, Mapping) or key not in content:
            return None
        content = content[key]
    return content


def bounded(is_within: Callable[[float, float], bool], bound: float, *keys: str, unit: str = "") -> Judge:
    """The number under ``keys`` of the step's JSON keeps to ``bound``."""

    def judge(found: Found, step: str) -> Measured | None:
        value = told(found.json(step), *keys)
        return None if value is None else Measured(f"{value:.4g}{unit}", is_within(value, bound))

    return judge


at_most, at_least = partial(bounded, operator.le), partial(bounded, operator.ge)


def tests_pass(found: Found, step: str) -> Measured | str | None:
    """All tests that ran passed, and some ran."""
    suite = found.tests(step)
    if suite is None:
        return None
    total, skipped, *bad = (int(suite.get(name)) for name in ("tests", "skipped", "failures", "errors"))
    passed = total - skipped - sum(bad)
    if passed + sum(bad) == 0:
        return f"no test ran: {'; '.join(reasons_to_skip(suite)) or 'none is for this machine'}"
    return Measured(f"{passed} passed, {sum(bad)} failed, {skipped} skipped", not sum(bad))


def reasons_to_skip(suite: Element) -> list[str]:
    """Why tests were skipped, each reason once; of a file that was skipped whole it is in the text alone."""
    told_by = [(node.get("message") or "", node.text or "") for node in suite.iter("skipped")]
    return list(dict.fromkeys(text if message == "collection skipped" else message for message, text in told_by))


def clean(found: Found, step: str) -> Measured | None:
    """compute-sanitizer ended with nothing found, after every kernel."""
    log = found.log(step)
    counts = [int(count) for count in re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)", log)]
    if not counts or "ran every kernel" not in log:
        return None
    return Measured(f"{sum(counts)} told", not sum(counts))


def application(found: Found, step: str) -> Measured | None:
    """Bytes a second of the stain application, over those of a large copy."""
    content = found.json(step)
    own = told(content, *STAIN_64, "apply_bytes_per_second")
    copy = told(content, "copy_bytes_per_second")
    return Measured(f"{own / copy:.3f}", own / copy >= 0.85) if own and copy else None


def ties(found: Found, step: str) -> Measured | None:
    """Where a label differs from the reference's, the two best logits tie within FP16."""
    kinds = told(found.json(step), "finish")
    if kinds is None:
        return None
    every = [case for kind in kinds.values() for case in kind.values()]
    off, lead = sum(case["labels_off"] for case in every), max(case["lead_where_off"] for case in every)
    return Measured(f"{off} labels off, largest lead {lead:.2g}", lead <= 2e-3)


def deep_is_right(found: Found, step: str) -> Measured | None:
    """The deep convolutions' kernels round as their types do: the tests' bounds."""
    errors = told(found.json(step), "deep")
    if errors is None:
        return None
    half = max(error for name, error in errors.items() if "half" in name)
    single = max(error for name, error in errors.items() if "half" not in name)
    return Measured(f"{half:.2g} and {single:.2g}", half <= 2**-10 and single <= 2**-18)


def deep_is_fast(found: Found, step: str) -> Measured | str | None:
    """The better of the deep kernels' two layouts over stock operators, 64 images."""
    forms = told(found.json(step), "microseconds", "64 tiles", "deep")
    stock = told(forms, "stock_operators_in_torch", "microseconds")
    if stock is None:
        return "the Python that ran the kernels has no PyTorch that sees the GPU" if forms else None
    ours, layout = min((forms[name]["microseconds"], name) for name in ("planes", "channels_last"))
    return Measured(f"{stock / ours:.2f}× ({ours:.0f} µs, {layout.replace('_', ' ')})", stock > ours)


Chosen = Callable[[str], bool]
"""Whether a form, by its name, is meant."""
ByBatch = Mapping[int, Mapping[str, float]]
"""Milliseconds by form."""


def times(found: Found, step: str) -> ByBatch:
    """Milliseconds by batch and form, of an ``engines-…`` step, and of its partner if both measured in turns."""
    names = (step,) if is_apart(found, step) else (step, partner_of(step))
    rows = [row for name in names for row in told(found.json(name), "timings") or ()]
    return {batch: {row["form"]: row["ms_median"] for row in rows if row["batch"] == batch} for batch in LARGE}


def is_apart(found: Found, step: str) -> bool:
    """Whether an ``engines-…`` step or its partner measured without the other."""
    return any(told(found.json(name), "alone") for name in (step, partner_of(step)))


def is_torch(form: str) -> bool:
    """Whether a form is PyTorch's."""
    return form.startswith("torch ")


def is_rewritten(form: str) -> bool:
    """Whether a form is a rewritten FP16 engine."""
    return form not in (PLAIN, INT8) and not is_torch(form)


def fastest(forms: Mapping[str, float], chosen: Chosen) -> tuple[float, str] | None:
    """Milliseconds and name of the fastest of the forms chosen."""
    return min(((ms, form) for form, ms in forms.items() if chosen(form)), default=None)


def faster(by_batch: ByBatch, chosen: Chosen, other: Chosen, bound: float) -> Measured | None:
    """Where it is most, the fastest form chosen is ``bound`` times as fast as the fastest other of that batch."""
    ratios = []
    for batch, forms in by_batch.items():
        mine, theirs = fastest(forms, chosen), fastest(forms, other)
        if mine and theirs:
            ratios.append((theirs[0] / mine[0], f"({mine[1]} over {theirs[1]}, batch {batch})"))
    ratio, which = max(ratios, default=(None, ""))
    return None if ratio is None else Measured(f"{ratio:.2f}× {which}", ratio >= bound)


def beside(chosen: Chosen, other: Chosen, bound: float) -> Judge:
    """At a large batch, the fastest form chosen is ``bound`` times as fast as the fastest other."""

    def judge(found: Found, step: str) -> Measured | str | None:
        left_out = told(found.json(step), "left_out") or {}
        why = next((f"{form}: {why}" for form, why in left_out.items() if chosen(form) or other(form)), None)
        return faster(times(found, step), chosen, other, bound) or why

    return judge


def beside_torch(found: Found, step: str) -> Measured | str | None:
    """A rewritten engine is 1.3 times as fast as PyTorch, at a batch at which each of its modes was timed."""
    if is_apart(found, step):
        return APART
    every = times(found, step)
    whole = {batch: forms for batch, forms in every.items() if forms.keys() >= COMPILED}
    sure, seen = (faster(by_batch, is_rewritten, is_torch, 1.3) for by_batch in (whole, every))
    if seen and seen.holds and not (sure and sure.holds):
        return f"{seen.text}, but not beside {' and '.join(sorted(COMPILED))}: more --minutes let them be compiled"
    return sure if sure and sure.holds else seen


def agreement(seen: float, half: float | None, of: str = "") -> Measured:
    """Whether a share of pixels of PyTorch's float32 class is near enough to 1, ``half`` being PyTorch's in FP16.

    Trained networks keep 99.9%. Random ones have classes that nearly tie, and may stray twice as often as PyTorch does.
    """
    beside_half = "" if half is None else f"; PyTorch in FP16 {half:.3%}"
    return Measured(f"{seen:.3%}{of}{beside_half}", 1 - seen <= max(0.001, 2 * (1 - (1.0 if half is None else half))))


def engines_agree(found: Found, step: str) -> Measured | None:
    """Every FP16 engine gives PyTorch's float32 class."""
    every = told(found.json(step), "accuracy") or {}
    seen = {name: entry["agreement"] for name, entry in every.items() if name != INT8}
    if not seen:
        return None
    half = told(found.json(partner_of(step)), "accuracy", "agreement")
    worst = min(seen, key=lambda name: seen[name])
    return agreement(seen[worst], half, f" ({worst}, the worst of {len(seen)})")


def labels_agree(found: Found, step: str) -> Measured | None:
    """The engine's chain gives PyTorch's float32 label."""
    seen, half = told(found.json(step), "agreement"), told(found.json("chain-64"), "agreement")
    return None if seen is None else agreement(seen, half)


def partner_of(step: str) -> str:
    """PyTorch's side of an ``engines-…`` step."""
    return step.replace("engines", "torch")


def placements_are_built(found: Found, step: str) -> Measured | str | None:
    """Both networks with the recipe's Q/DQ pairs are built; the others are told."""
    every = found.json(step)
    if every is None:
        return None
    ours = [told(every, name, "result") for name in ("ours", "edge-ours")]
    if None in ours:
        return None
    if "no time was left" in ours:
        return "no time was left"
    others = sorted(name for name, entry in every.items() if entry["result"] != "built")
    return Measured(f"{' and '.join(ours)}; not built: {', '.join(others) or 'none'}", ours == ["built", "built"])


def placed_is_faster(found: Found, step: str) -> Measured | str | None:
    """The edge network's time in FP16 over that in INT8."""
    every, names = found.json(step), ("edge-float", "edge-ours")
    half, ours = (told(every, name, "ms_median") for name in names)
    if half and ours:
        return Measured(f"{half / ours:.2f}×", half > ours)
    results = [f"{name}: {result}" for name in names if (result := told(every, name, "result"))]
    return ", ".join(results) or None


def graphs_save(found: Found, step: str) -> Measured | None:
    """A tile alone takes less with a graph than without."""
    content = found.json(step)
    graph, plain = (told(content, name, "p50") for name in ("graph", "plain launches"))
    if graph is None or plain is None:
        return None
    return Measured(f"{graph:.3f} ms with, {plain:.3f} ms without", graph < plain)


def race_is_won(found: Found, step: str) -> Measured | str | None:
    """Tiles a second of the engine's chain over those of PyTorch's, measured in turns."""
    engine, torch = found.json(step), found.json("race-torch")
    if not engine or not torch:
        return None
    if engine["alone"] or torch["alone"]:
        return APART
    ratio = engine["tiles_per_s"] / torch["tiles_per_s"]
    rate = f"{engine['tiles_per_s']:.0f} over {torch['tiles_per_s']:.0f} tiles/s"
    tried = ", ".join(sorted(torch["rates"], key=int))
    return Measured(f"{ratio:.2f}× ({rate}, PyTorch's batch {torch['batch']} of {tried})", ratio >= 3)


def stays(found: Found, step: str) -> Measured | None:
    """After 100,000 tiles memory is as before, and equal tiles had equal labels."""
    content = found.json(step)
    grown = told(content, "grown_bytes")
    if grown is None:
        return None
    memory = ", ".join(f"{name} {size / 2**20:+.1f} MiB" for name, size in grown.items())
    labels = "identical" if content["identical"] else "DIFFERENT"
    text = f"{content['tiles']} tiles, {labels} labels, memory {memory}"
    return Measured(text, content["identical"] and max(grown.values()) <= STILL_BYTES)


def training_is_good(found: Found, step: str) -> Measured | None:
    """Foreground Dice on fold 3's colon patches."""
    runs = told(found.json(step), "runs")
    if not runs:
        return None
    dice, name = max((run["test"]["Colon"]["foreground_dice"], name) for name, run in runs.items())
    return Measured(f"{dice:.3f} ({name})", dice >= gpu_training.BAR)


def command_works(found: Found, step: str) -> Measured | None:
    """The command ended with 0. One that says what this machine lacks (3) was not run."""
    outcome = found.outcome(step)
    if outcome.exit_code == 0:
        return Measured(f"exit 0 in {outcome.seconds:.0f} s", True)
    return None if outcome.exit_code in (None, 3) else Measured(outcome.reason, False)


ROUNDS = ("engines-all", "engines-first")
KERNELS = ("cuda_kernels",)
WORST = ("stain", "worst_tile")

BARS: tuple[Bar, ...] = (
    Bar("GPU tests of the kernels", "all pass", ("tests-kernels",), tests_pass),
    Bar("GPU tests of the runtime, TensorRT", "all pass", ("tests-runtime",), tests_pass),
    Bar("GPU tests of bundles", "all pass", ("tests-bundles",), tests_pass),
    Bar("GPU tests of the kernel in an engine", "all pass", ("tests-plugin",), tests_pass),
    Bar("GPU tests of the runtime, PyTorch", "all pass", ("tests-torch",), tests_pass),
    Bar("compute-sanitizer memcheck", "0 errors", ("memcheck",), clean),
    Bar("compute-sanitizer racecheck", "0 hazards", ("racecheck",), clean),
    Bar("stain: statuses other than the CPU's", "0", KERNELS, at_most(0, "stain", "statuses_different")),
    Bar("stain: levels off in any tile", "≤ 1", KERNELS, at_most(1, *WORST, "max_level")),
    Bar("stain: mean levels off in any tile", "≤ 0.01", KERNELS, at_most(0.01, *WORST, "mean_level")),
    Bar("stain: share of equal levels in any tile", "≥ 0.99", KERNELS, at_least(0.99, *WORST, "equal_share")),
    Bar("stain: error of FP16 output", "≤ 1.2e-3", KERNELS, at_most(1.2e-3, *WORST, "half_error")),
    Bar("stain: levels off before truncation", "≤ 0.005", KERNELS, at_most(0.005, "apply", "error_before_truncation")),
    Bar("finish kernels: labels off", "ties only", KERNELS, ties),
    Bar("deep kernels: error, FP16 and FP32", "≤ 9.8e-4, 3.8e-6", KERNELS, deep_is_right),
    Bar("deep kernels of 64 tiles over stock operators", "> 1×", KERNELS, deep_is_fast),
    Bar("stain application of 64 tiles over a copy", "≥ 0.85", KERNELS, application),
    Bar("estimation and application of 64 tiles", "≤ 150 µs", KERNELS, at_most(150, *STAIN_64, "both", unit=" µs")),
    Bar("engines give PyTorch's float32 class", "≥ 99.9%, or as FP16 does", ROUNDS, engines_agree),
    Bar("rewritten over plain engine", "≥ 1.5×", ROUNDS, beside(is_rewritten, PLAIN.__eq__, 1.5)),
    Bar("rewritten engine over torch.compile", "≥ 1.3×", ROUNDS, beside_torch, ("torch-first",)),
    Bar("end to end over the engine alone", "≤ 1.10", ("overlap",), at_most(1.10, "2 slots", "ratio")),
    Bar("end to end gives PyTorch's float32 label", "≥ 99.9%, or as FP16 does", ("stages",), labels_agree),
    Bar("graphs at one tile", "faster", ("latencies",), graphs_save),
    Bar("end to end over PyTorch's best", "≥ 3×", ("race-engine",), race_is_won, ("race-torch",)),
    Bar("100,000 tiles in a row", f"equal labels, memory within {STILL_BYTES >> 20} MiB", ("endurance",), stays),
    Bar("unetsharp build-engine", "exit 0", ("user-build",), command_works),
    Bar("unetsharp infer", "exit 0", ("user-infer",), command_works),
    Bar("unetsharp validate", "exit 0", ("user-validate",), command_works),
    Bar("unetsharp bench", "exit 0", ("user-bench",), command_works),
    Bar("INT8: the recipe's placement is built", "built", ("placements",), placements_are_built),
    Bar("INT8 over FP16, edge network", "> 1×", ("placements",), placed_is_faster),
    Bar("trained for five minutes: Dice on colon patches", "≥ 0.78", ("training",), training_is_good),
    Bar("INT8 over FP16, paper's network", "> 1×", ROUNDS[:1], beside(INT8.__eq__, SHOWN.__eq__, 1.0), ("build-int8",)),
)  # fmt: skip
