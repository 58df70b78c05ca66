"""What the scan for float16 sees, against closed forms and plain numpy."""

import numpy as np
import pytest

from support.small_graphs import SmallGraph
from unetsharp_engines.contract import INPUT_NAME
from unetsharp_engines.quantization.float16 import Float16Scan, blocks
from unetsharp_engines.rewrites.graph import Graph

IMAGES = np.random.default_rng(4).random((5, 3, 8, 8)).astype(np.float32)


def scanned(graph: SmallGraph, x: str, images: np.ndarray = IMAGES, batch: int = 2) -> Float16Scan:
    scan = Float16Scan(graph.model(x), threads=1)
    for start in range(0, len(images), batch):
        scan.feed(images[start : start + batch])
    return scan


def one_to_one(graph: SmallGraph, x: str, name: str, factor: float, channels: int = 3, outputs: int = 3) -> str:
    y = graph.conv(x, channels, outputs, name, kernel=1)
    graph.replace(f"{name}.weight", factor * np.eye(outputs, channels)[..., None, None])
    graph.replace(f"{name}.bias", np.zeros(outputs))
    return y


def test_a_block_is_a_convolution_and_what_follows_it():
    graph = SmallGraph()
    start = graph.op("Neg", INPUT_NAME)
    first = graph.mish(graph.conv(start, 3, 8, "first"))
    second = graph.conv(first, 8, 8, "second")
    both = graph.op("Add", first, second, name="both")
    of = blocks(Graph(graph.model(graph.conv(both, 8, 6, "head"))))
    assert of[start] == start
    assert of[first] == "first"
    assert (of["second"], of["head"]) == ("second", "head")
    assert of["both"] == "first"


def test_ranges_are_those_of_all_pictures():
    graph = SmallGraph()
    x = one_to_one(graph, INPUT_NAME, "scaled", 2.0**-15)  # below 1: all of it is small
    wide = one_to_one(graph, x, "wide", 2.0**25)
    scan = scanned(graph, graph.conv(wide, 3, 6, "head"))
    assert scan.ranges()[x].largest == pytest.approx(float(IMAGES.max()) * 2.0**-15)
    assert scan.ranges()[x].small == 1.0
    assert scan.ranges()[wide].small == 0.0


def test_zeros_are_not_small():
    graph = SmallGraph()
    x = graph.op("Relu", one_to_one(graph, INPUT_NAME, "negative", -1.0))
    assert scanned(graph, graph.conv(x, 3, 6, "head")).ranges()[x].small == 0.0


def test_noise_is_that_of_rounding_input_weights_and_output():
    """A power of two for a weight is exact; input and output each stray by up to 2^-11, evenly: 2^-22 / 12 · mean 1/m²
    over a binade (m uniform in 1..2: mean of m² is 7/3) each, and the second rounding of a rounded value is none."""
    graph = SmallGraph()
    x = one_to_one(graph, INPUT_NAME, "scaled", 2.0)
    images = 1 + np.random.default_rng(0).random((4, 3, 8, 8)).astype(np.float32)
    noise = scanned(graph, graph.conv(x, 3, 6, "head"), images).noise_to_signal()["scaled"]
    assert noise == pytest.approx(2.0**-20 / 12 / (7 / 3), rel=0.1)


def test_overflow_is_endless_noise_for_who_makes_it_and_who_reads_it():
    graph = SmallGraph()
    x = one_to_one(graph, INPUT_NAME, "huge", 1e6)
    noise = scanned(graph, graph.conv(one_to_one(graph, x, "back", 1e-6), 3, 6, "head")).noise_to_signal()
    assert noise["huge"] == np.inf
    assert noise["back"] == np.inf
    assert noise["head"] < 1e-5
