"""Numbers and tables as the page shows them."""

import math
from collections.abc import Sequence
from html import escape

from unetsharp.validate.bootstrap import Estimate

__all__ = ["change", "milliseconds", "number", "row", "share", "share_of", "table"]

_UNDEFINED = "–"


def number(value: float, form: str = ".4f") -> str:
    """``value`` in Python's ``form``, with a true minus; a dash where it is undefined."""
    if math.isnan(value):
        return _UNDEFINED
    return "∞" if math.isinf(value) else format(value, form).replace("-", "−")


def milliseconds(value: float) -> str:
    """A time, to three digits or whole."""
    return number(value, ",.0f" if value >= 100 else ".3g")


def share(value: float) -> str:
    """A share as percent, rounded down: 100% is said of nothing less."""
    if math.isnan(value):
        return _UNDEFINED
    return "100%" if value == 1.0 else f"{math.floor(value * 10000 + 1e-9) / 100:.2f}%"


def share_of(estimate: Estimate) -> str:
    """A share with its interval in small letters below it."""
    if estimate.low is None or estimate.high is None or estimate.low == estimate.high:
        return share(estimate.value)
    return share(estimate.value) + _small(f"{share(estimate.low)} … {share(estimate.high)}")


def change(estimate: Estimate, form: str = "+.4f") -> str:
    """A change with its interval in small letters below it; 0 is said of no change alone."""
    ends = (estimate.low, estimate.high)
    if estimate.value == 0.0 and ends in ((0.0, 0.0), (None, None)):
        return '<span class="faint">0</span>'
    if estimate.low is None or estimate.high is None:
        return _signed(estimate.value, form)
    if all(_is_rounded_away(x, form) for x in (estimate.value, estimate.low, estimate.high)):
        return f'<span class="faint">{_signed(estimate.value, form)}</span>'
    return _signed(estimate.value, form) + _small(f"{_signed(estimate.low, form)} … {_signed(estimate.high, form)}")


def _signed(value: float, form: str) -> str:
    if value == 0.0:
        return "0"
    return f"≈ {number(0.0, form.lstrip('+'))}" if _is_rounded_away(value, form) else number(value, form)


def _is_rounded_away(value: float, form: str) -> bool:
    return not any(digit in "123456789" for digit in number(value, form)) and math.isfinite(value)


def _small(text: str) -> str:
    return f'<span class="ends">{text}</span>'


def row(cells: Sequence[str], tag: str = "td") -> str:
    """A row of a table; cells are markup."""
    return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], style: str = "") -> str:
    """A table with a head; columns are text, cells markup."""
    head = row([escape(column) for column in columns], "th")
    body = "\n".join(row(cells) for cells in rows)
    return f'<table class="{style}"><thead>{head}</thead><tbody>\n{body}\n</tbody></table>'
