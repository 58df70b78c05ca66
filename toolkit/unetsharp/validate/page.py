"""The report as one self-contained HTML page: verdict first, then gates, chain, details, provenance."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from unetsharp.validate.assessment import Assessment, StepResult
from unetsharp.validate.chain import Step
from unetsharp.validate.charts import dice_chart, layers_chart, reliability_chart
from unetsharp.validate.gates import Gate
from unetsharp.validate.markup import change, milliseconds, number, row, share, share_of, table
from unetsharp.validate.observing import NotRun, WorstPatch
from unetsharp.validate.pictures import CHANGED_COLOR, strip_uri
from unetsharp.validate.validation import Validation
from unetsharp.validate.words import caveats, headline, not_gated, summary
from unetsharp_engines.contract import CLASSES, NUCLEUS_CLASSES, TissueClass

__all__ = ["TERMS", "page"]

TERMS: tuple[tuple[str, str], ...] = (
    ("Reference", "the trained network as PyTorch runs it in float32; everything is compared with it"),
    ("Argmax agreement", "share of pixels to which both networks give the same most probable class"),
    (
        "Dice",
        "overlap of predicted and true pixels: twice those in both, over the sum of both; 1 is perfect, 0 is none",
    ),
    ("IoU", "those in both over those in either; it ranks as Dice does, and is smaller"),
    ("Foreground", "any nucleus, whatever its class"),
    ("Class mean", "mean of the nucleus classes' scores, so that a rare class weighs as much as a common one"),
    (
        "bPQ, mPQ",
        "panoptic quality as PanNuke defines it: nuclei found (IoU above 0.5) times how well they are outlined; "
        "b takes all nuclei as one class, m each class by itself",
    ),
    ("ECE", "how far the network's confidence is from the share of pixels it gets right; 0 is as sure as it is right"),
    (
        "Logit SNR",
        "strength of the reference's outputs over that of the change: 20 dB is a tenth of their size, 40 dB a "
        "hundredth",
    ),
    ("95% interval", "where the value would lie for 95 of 100 other draws of such patches"),
    ("Within the noise", "the interval holds no change, or the limit: these patches cannot tell"),
    ("FP32, FP16, INT8", "numbers of 32, 16 and 8 bits: fewer are faster and smaller, and rounder"),
)
"""Every term of the page, explained in a line."""

_OVERVIEW = (
    ("dice_foreground", "Dice, foreground", "+.4f"),
    ("dice_class_mean", "Dice, class mean", "+.4f"),
    ("iou_foreground", "IoU, foreground", "+.4f"),
    ("iou_class_mean", "IoU, class mean", "+.4f"),
    ("bpq", "bPQ", "+.4f"),
    ("mpq", "mPQ", "+.4f"),
    ("nuclei", "Nuclei found", "+,.0f"),
    ("ece", "ECE", "+.4f"),
)


def page(validation: Validation, circumstances: Mapping[str, Any]) -> str:
    """The page's text: no script, and nothing that it would fetch."""
    assessment = validation.assessment
    template = Template(files("unetsharp.validate").joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        network=escape(validation.chain.info.name),
        date=escape(_date(circumstances["finished"])),
        verdict=assessment.verdict.value,
        headline=escape(headline(validation)),
        summary=escape(summary(validation)),
        gates=_gates(assessment),
        ungated=escape(not_gated(assessment)),
        earlier_gates=_earlier_gates(assessment),
        legend=_legend(),
        chain=_chain(validation),
        dice=_dice(assessment),
        classes=_classes(assessment),
        reference_changes=_changes(assessment, "reference"),
        previous_changes=_changes(assessment, "previous"),
        steps=_steps(assessment),
        kept=_kept(assessment),
        reliability=_reliability(assessment),
        layers=_layers(validation),
        worst=_worst(assessment),
        caveats=_list(caveats(validation)),
        terms="\n".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in TERMS),
        provenance=_provenance(validation, circumstances),
    )


def _date(iso: str) -> str:
    """``2026-11-23T09:23:19+00:00`` as people write it."""
    day, _, time = iso.partition("T")
    return f"{day}, {time[:5]} UTC"


def _list(sentences: Iterable[str]) -> str:
    return "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)


def _gates(assessment: Assessment) -> str:
    """The gates of the last step that ran, each with how sure it is."""
    last = assessment.steps[-1].ran.step.title
    columns = ("", "Gate", "Value", "Limit", "95% interval", "How sure")
    return table(columns, [_gate(gate) for gate in assessment.gates if gate.step == last], "gates")


def _gate(gate: Gate) -> list[str]:
    low, high = gate.kept.low, gate.kept.high
    ends = "" if low is None or high is None else f"{share(low)} … {share(high)}"
    value = f"<strong>{share(gate.kept.value)}</strong>"
    return [
        _mark(gate),
        escape(gate.name[0].upper() + gate.name[1:]),
        value,
        f"≥ {share(gate.limit)}",
        ends,
        escape(gate.certainty),
    ]


def _mark(gate: Gate) -> str:
    state = "passed" if gate.passed else "failed"
    return f'<span class="mark {state}">{state[:4]}</span>'


def _earlier_gates(assessment: Assessment) -> str:
    """The gates of the steps before it: a row a gate, a column a step."""
    titles = [result.ran.step.title for result in assessment.steps[1:-1]]
    if not titles:
        return ""
    names = list(dict.fromkeys(gate.name for gate in assessment.gates))
    held = {(gate.name, gate.step): gate for gate in assessment.gates}
    rows = [
        [escape(name[0].upper() + name[1:]), *(_small_gate(held[name, title]) for title in titles)] for name in names
    ]
    return f"<h3>The steps before it</h3>{table(('Gate', *titles), rows, 'figures')}"


def _small_gate(gate: Gate) -> str:
    return f'{share(gate.kept.value)}<span class="ends">{_mark(gate)} ≥ {share(gate.limit)}</span>'


def _chain(validation: Validation) -> str:
    assessment = validation.assessment
    results = {result.ran.step.key: result for result in assessment.steps}
    lacking = {not_run.step.key: not_run for not_run in assessment.not_run}
    cards = [
        _card(results[step.key], sum(gate.step == step.title for gate in assessment.failed))
        if step.key in results
        else _card_not_run(lacking[step.key])
        for step in validation.chain.steps
    ]
    return "\n".join(f"<li>{card}</li>" for card in cards)


def _card(result: StepResult, failed: int) -> str:
    ran, against = result.ran, result.against_reference
    fails = "1 gate fails" if failed == 1 else f"{failed} gates fail"
    outcome = f'<p><span class="mark failed">{fails}</span></p>' if failed else ""
    same = "reference" if against is None else f"{share(against.pair['agreement'].value)} same class"
    facts = (
        same,
        f"Dice {number(result.measures['dice_foreground'].value)}",
        _megabytes(ran.step.size),
        f"{milliseconds(ran.milliseconds)} ms a patch",
    )
    lines = "".join(f"<p>{escape(fact)}</p>" for fact in facts)
    return f"<h3>{escape(ran.step.title)}</h3><small>{ran.step.precision.upper()}</small>{lines}{outcome}"


def _card_not_run(not_run: NotRun) -> str:
    step = not_run.step
    return (
        f"<h3>{escape(step.title)}</h3><small>{step.precision.upper()}</small>"
        f'<p class="notrun">NOT RUN</p><p>{_megabytes(step.size)}</p>'
    )


def _megabytes(size: int) -> str:
    return f"{number(size / 1e6, '.3g')} MB"


def _dice(assessment: Assessment) -> str:
    """The chart of what the last step left of each Dice."""
    last = assessment.steps[-1]
    if last.against_reference is None:
        return "<p>Nothing but the reference ran.</p>"
    names = {"dice_foreground": "Foreground", "dice_class_mean": "Class mean"}
    names |= {f"dice_{c.name.lower()}": c.name for c in NUCLEUS_CLASSES}
    kept = last.against_reference.kept
    rows = [(name, kept[key]) for key, name in names.items() if kept[key].value == kept[key].value]
    limit = next(gate.limit for gate in reversed(assessment.gates) if gate.name == "foreground Dice")
    return dice_chart(rows, limit)


def _classes(assessment: Assessment) -> str:
    """Reference and last step, class by class."""
    columns = ("Class", "True nuclei", "Dice", "change", "IoU", "change", "Nuclei found", "change", "PQ", "change")
    return table(columns, [_class_row(assessment, c) for c in NUCLEUS_CLASSES], "figures")


def _class_row(assessment: Assessment, tissue_class: TissueClass) -> list[str]:
    reference, last = assessment.steps[0], assessment.steps[-1]
    cells = [
        _chip(tissue_class),
        f"{assessment.nuclei[tissue_class.name]:,}",
    ]
    for key, form in (("dice", ".4f"), ("iou", ".4f"), ("nuclei", ",.0f"), ("pq", ".4f")):
        name = f"{key}_{tissue_class.name.lower()}"
        cells.append(number(reference.measures[name].value, form))
        cells.append(change(last.against_reference.differences[name], f"+{form}") if last.against_reference else "")
    return cells


def _chip(tissue_class: TissueClass) -> str:
    red, green, blue = tissue_class.color
    return f'<span class="chip" style="background: rgb({red}, {green}, {blue})"></span>{tissue_class.name}'


def _legend() -> str:
    red, green, blue = CHANGED_COLOR
    changed = f'<span class="chip" style="background: rgb({red}, {green}, {blue})"></span>given another class'
    return " ".join(f"<span>{entry}</span>" for entry in [*map(_chip, NUCLEUS_CLASSES), changed])


def _changes(assessment: Assessment, against: str) -> str:
    """What every step changed: a row a measure, a column a step. ``against`` is ``reference`` or ``previous``."""
    results = [result for result in assessment.steps if result.against_reference is not None]
    found = [getattr(result, f"against_{against}") for result in results]
    rows = [
        ["Argmax agreement", *(share_of(c.pair["agreement"]) for c in found)],
        ["Logit SNR, dB", *(change(c.pair["logit_snr"], ".1f") for c in found)],
        *([title, *(change(c.differences[key], form) for c in found)] for key, title, form in _OVERVIEW),
    ]
    return table(("", *(result.ran.step.title for result in results)), rows, "figures")


def _kept(assessment: Assessment) -> str:
    """What became of the pixels that the reference gave each class, percent."""
    pair = assessment.steps[-1].ran.against_reference
    if pair is None:
        return ""
    counts = pair.kept.sum(axis=0)
    rows = [
        [f'{c.name} <span class="ends">{counts[c.channel].sum():,} pixels</span>', *_shares(counts[c.channel].tolist())]
        for c in CLASSES
        if counts[c.channel].any()
    ]
    return table(("The reference says", *(c.name for c in CLASSES)), rows, "figures")


def _shares(counts: Sequence[int]) -> list[str]:
    largest = max(counts)
    cells = [share(count / sum(counts)) if count else "" for count in counts]
    return [f"<strong>{cell}</strong>" if count == largest else cell for cell, count in zip(cells, counts, strict=True)]


def _reliability(assessment: Assessment) -> str:
    shown = [assessment.steps[0], assessment.steps[-1]]
    return reliability_chart([(r.ran.step.title, r.ran.tally.confidence.sum(axis=0)) for r in shown])


def _layers(validation: Validation) -> str:
    if not validation.layers:
        return "<p>Every ONNX of this chain computes in float32, so no layer is rounded.</p>"
    return layers_chart(validation.layers)


def _worst(assessment: Assessment) -> str:
    if not assessment.worst:
        return "<p>None: not a pixel changed its class.</p>"
    titles = ("Image", assessment.steps[0].ran.step.title, assessment.steps[-1].ran.step.title, "Changed pixels")
    head = "".join(f"<span>{escape(title)}</span>" for title in titles)
    return f'<div class="titles">{head}</div>' + "\n".join(map(_figure, assessment.worst))


def _figure(worst: WorstPatch) -> str:
    patch, pixels = worst.patch, worst.reference.size
    caption = (
        f"Fold {patch.fold}, patch {patch.index}, {patch.tissue}: {worst.changed:,} of {pixels:,} pixels changed "
        f"({number(100 * worst.changed / pixels, '.2f')}%)"
    )
    return (
        f'<figure><img src="{strip_uri(worst)}" alt="Image, reference, deployed and changed pixels side by side">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _steps(assessment: Assessment) -> str:
    rows = [
        [
            escape(r.ran.step.title),
            escape(r.ran.step.origin),
            escape(f"{r.ran.runtime}, {r.ran.device}"),
            _code(r.ran.step),
        ]
        for r in assessment.steps
    ]
    rows += [
        [escape(n.step.title), escape(n.step.origin), '<span class="notrun">NOT RUN</span>', _code(n.step)]
        for n in assessment.not_run
    ]
    return table(("Step", "What it is", "Run by", "SHA-256 of its file"), rows)


def _code(step: Step) -> str:
    return f"<code>{step.sha256}</code>"


def _provenance(validation: Validation, circumstances: Mapping[str, Any]) -> str:
    reference, bundle = circumstances["files"]["reference"], circumstances["files"]["bundle"]
    arguments, packages = circumstances["arguments"], circumstances["packages"]
    tissues = ", ".join(f"{name} {count}" for name, count in validation.assessment.tissues.items())
    rows = {
        "Command": f"<code>{escape(circumstances['command'])}</code>",
        "Date": f"{circumstances['started']} to {circumstances['finished']}",
        "Reference": f"{escape(reference['path'])}<br><code>{reference['sha256']}</code>",
        "Bundle": f"{escape(bundle['path'])}<br><code>{bundle['sha256']}</code>",
        "Data": f"{escape(str(arguments['data']))}, fold {validation.fold}, {len(validation.indices):,} patches "
        f"({escape(tissues)})<br><code>{validation.data_sha256}</code> (images and truth)",
        "Versions": escape(
            ", ".join(
                [f"unetsharp {circumstances['unetsharp']}", f"Python {circumstances['python']}"]
                + [f"{name} {version}" for name, version in packages.items()]
            )
        ),
        "Machine": escape(f"{circumstances['platform']}, {circumstances['cores']['value']} cores"),
    }
    return "\n".join(row([name, value]) for name, value in rows.items())
