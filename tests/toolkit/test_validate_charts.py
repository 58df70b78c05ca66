"""The report's plots: whole SVG, nothing drawn outside, whatever the numbers."""

import math
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetsharp.validate.bootstrap import Estimate
from unetsharp.validate.charts import dice_chart, layers_chart, reliability_chart
from unetsharp.validate.layers import LayerNoise
from unetsharp.validate.tally import BINS

KEPT = st.floats(0, 3)


@st.composite
def estimates(draw: st.DrawFn) -> Estimate:
    low, value, high = sorted(draw(st.tuples(KEPT, KEPT, KEPT)))
    ends = (low, high) if draw(st.booleans()) else (None, None)
    return Estimate(value=value, low=ends[0], high=ends[1])


def points(svg: str) -> list[tuple[float, float]]:
    """Every point of the plot, after a check that all lie inside."""
    root = ET.fromstring(svg)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    seen = [(float(e.attrib["cx"]), float(e.attrib["cy"])) for e in root.iter("circle")]
    ends = [(float(e.attrib[f"x{i}"]), float(e.attrib[f"y{i}"])) for e in root.iter("line") for i in (1, 2)]
    for x, y in (*seen, *ends):
        assert 0 <= x <= width
        assert 0 <= y <= height
    return seen


@given(st.lists(st.tuples(st.text("abc<&", max_size=9), estimates()), min_size=1, max_size=7), st.floats(0.5, 1))
def test_dice_has_a_point_a_row(rows: list[tuple[str, Estimate]], limit: float) -> None:
    assert len(points(dice_chart(rows, limit))) == len(rows)


def test_less_is_to_the_left_and_the_limit_between() -> None:
    rows = [("lost", Estimate(value=0.99, low=0.98, high=1.0)), ("won", Estimate(value=1.01, low=1.0, high=1.02))]
    svg = dice_chart(rows, 0.995)
    lost, won = (x for x, _ in points(svg))
    (limit,) = [float(e.attrib["x1"]) for e in ET.fromstring(svg).iter("line") if "stroke-dasharray" in e.attrib]
    assert lost < limit < won
    assert "−1.00%  (−2.00 … +0.00)" in svg
    assert "limit −0.5%" in svg


@given(st.lists(st.floats(-20, 200) | st.sampled_from([math.inf, math.nan]), max_size=60))
def test_layers_have_a_point_each_but_for_silent_ones(decibels: list[float]) -> None:
    layers = [
        LayerNoise(name=f"/{'ab'[place % 2]}/{place}", precision=("int8", "float")[place % 2], sqnr_db=db)
        for place, db in enumerate(decibels)
    ]
    legend = len({layer.precision for layer in layers if not math.isnan(layer.sqnr_db)})
    assert len(points(layers_chart(layers))) == sum(not math.isnan(db) for db in decibels) + legend


def test_confidence_is_across_and_right_is_up() -> None:
    bins = np.zeros((BINS, 3))
    bins[4], bins[14] = (100, 30, 30), (100, 98, 49)
    (sure, right), (surer, half) = points(reliability_chart([("reference", bins), ("deployed", bins)]))
    assert sure < surer
    assert half < right
    assert half == pytest.approx(12 + 300 * 0.51)
