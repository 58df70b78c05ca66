"""R2: a 3×3 convolution of an upsampled map, done at low resolution. The proof is in `taps`."""

import itertools

import numpy as np

from unetsharp_engines.contract import TAPS, TAPS_NAME
from unetsharp_engines.rewrites.graph import Array, Graph, attributes, name_of
from unetsharp_engines.rewrites.outcome import Outcome
from unetsharp_engines.rewrites.tail import TAIL_KEY, HeadTail
from unetsharp_engines.rewrites.taps import pointwise_taps, tap_matrices
from unetsharp_engines.rewrites.upsampled import UpsampledConvolution, upsampled_convolutions

__all__ = [
    "deep_at_low_resolution",
    "head_at_low_resolution",
    "head_with_resized_taps",
    "tailless_head",
    "taps_as_computed",
]

_MULTIPLE = 8
"""Channels of float16 that tensor cores take at once."""

_NO_HEAD = "the graph does not end in a 3×3 convolution of a bilinearly upsampled map of fixed height and width"


def head_at_low_resolution(graph: Graph) -> Outcome:
    """The head: 1×1 to 9 · classes at d1's resolution, then two small matrix products to logits.

    Exact: see `taps`. 54 channels are upsampled instead of 5c, and the 3×3 over them is gone.
    """
    heads = _heads(graph)
    for site in heads:
        _finish_in_graph(graph, site, _taps(graph, site))
    return Outcome(sites=tuple(site.name for site in heads), note="" if heads else _NO_HEAD)


def head_with_resized_taps(graph: Graph) -> Outcome:
    """The head: its taps at d1's resolution, upsampled, then shifted and added up by a 3×3 convolution of ones.

    Exact: see `taps`. What `head_at_low_resolution` does by matrix products is here a Resize of 56 channels and a
    convolution whose kernel holds, for each class and tap, a one where the tap belongs: the padding is the same zeros.
    """
    heads = _heads(graph)
    for site in heads:
        _finish_by_resize(graph, site)
    return Outcome(sites=tuple(site.name for site in heads), note="" if heads else _NO_HEAD)


def deep_at_low_resolution(graph: Graph) -> Outcome:
    """Convolutions of upsampled maps inside the network, wherever that saves arithmetic.

    Exact: see `taps`. With stock operators alone: the 320-channel maps are never upsampled, and the nine taps per
    output channel are put together by matrix products with ``tap_matrices``.
    """
    inner = [site for site in upsampled_convolutions(graph) if site.conv.node.output[0] not in graph.outputs]
    paying = [site for site in inner if _macs_after(site) < _macs_before(site)]
    for site in paying:
        _finish_in_graph(graph, site, _taps(graph, site))
    passed_over = len(inner) - len(paying)
    note = f"{passed_over} more would cost more arithmetic than they save" if passed_over else ""
    return Outcome(
        sites=tuple(site.name for site in paying),
        note=note or ("" if inner else "no 3×3 convolution of a bilinearly upsampled map inside the graph"),
    )


def tailless_head(graph: Graph, *, multiple: int = 1) -> Outcome:
    """The head cut off behind its taps: the graph ends at `TAPS_NAME`, and `tail.finish` or a kernel does the rest.

    Exact: `taps` proves that the rest gives the logits. The taps are padded with zero channels to a ``multiple``.
    """
    heads = _heads(graph)
    if len(heads) != 1 or heads[0].factors[0] != heads[0].factors[1]:
        return Outcome(sites=(), note=_NO_HEAD)
    (site,) = heads
    classes = len(site.conv.weight)
    channels = -(-TAPS * classes // multiple) * multiple
    elem_type, shape = graph.types()[site.source]
    taps = _taps(graph, site, output=TAPS_NAME, channels=channels)
    graph.set_output(site.conv.node.output[0], taps, elem_type, [shape[0] or "N", channels, *site.low])
    graph.set_metadata(TAIL_KEY, HeadTail(classes=classes, factor=site.factors[0], channels=channels).to_json())
    return Outcome(sites=(site.name,))


def taps_as_computed(graph: Graph) -> Outcome:
    """The taps leave a tail-less float16 network in float16: the kernel that finishes it reads half the bytes.

    Exact: what is left out is a Cast from float16 to float32, which changes no number.
    """
    cast = graph.producer(TAPS_NAME)
    taps = None if cast is None else graph.producer(cast.input[0])
    if cast is None or taps is None or cast.op_type != "Cast" or not graph.is_read_only_by(cast.input[0], cast):
        return Outcome(sites=(), note=f"no Cast makes {TAPS_NAME}")
    elem_type, shape = graph.types()[cast.input[0]]
    taps.output[:] = [TAPS_NAME if name == cast.input[0] else name for name in taps.output]
    graph.remove(cast)
    graph.set_output(TAPS_NAME, TAPS_NAME, elem_type, [shape[0] or "N", *shape[1:]])
    return Outcome(sites=(name_of(cast),))


def _heads(graph: Graph) -> list[UpsampledConvolution]:
    return [site for site in upsampled_convolutions(graph) if site.conv.node.output[0] in graph.outputs]


def _macs_before(site: UpsampledConvolution) -> int:
    return site.conv.weight.size * site.high[0] * site.high[1]


def _macs_after(site: UpsampledConvolution) -> int:
    (h, w), (height, width) = site.low, site.high
    outputs = len(site.conv.weight)
    return site.conv.weight.size * h * w + outputs * (3 * height * 3 * h * w + height * 3 * w * width)


def _taps(graph: Graph, site: UpsampledConvolution, output: str = "", channels: int = 0) -> str:
    """Add the 1×1 convolution; returns its output [N, 9 · outputs (or ``channels``), h, w]."""
    weight, bias = pointwise_taps(site.conv.weight, site.conv.bias)
    missing = max(channels - len(bias), 0)
    kind = graph.constants[site.conv.node.input[1]].dtype
    names = [
        graph.add_constant(f"{site.name}/taps/weight", np.pad(weight, ((0, missing), *[(0, 0)] * 3)).astype(kind)),
        graph.add_constant(f"{site.name}/taps/bias", np.pad(bias, (0, missing)).astype(kind)),
    ]
    return graph.add("Conv", [site.source, *names], output or f"{site.name}/taps", kernel_shape=[1, 1])


def _finish_by_resize(graph: Graph, site: UpsampledConvolution) -> None:
    """Upsample the taps, padded with zero channels to a multiple of eight, and shift and add them by a convolution."""
    outputs = len(site.conv.weight)
    channels = -(-TAPS * outputs // _MULTIPLE) * _MULTIPLE
    resize, kind = graph.producer(site.conv.node.input[0]), graph.constants[site.conv.node.input[1]].dtype
    assert resize is not None
    scales = graph.add_constant(f"{site.name}/taps/scales", np.array([1, 1, *site.factors], np.float32))
    upsampled = graph.add(
        "Resize",
        [_taps(graph, site, channels=channels), "", scales],
        f"{site.name}/taps/upsampled",
        **attributes(resize),
    )
    placed = graph.add_constant(f"{site.name}/taps/placed", _one_per_tap(outputs, channels).astype(kind))
    graph.remove(site.conv.node)
    graph.add("Conv", [upsampled, placed], site.conv.node.output[0], kernel_shape=[3, 3], pads=[1, 1, 1, 1])


def _one_per_tap(outputs: int, channels: int) -> Array:
    """Kernel [outputs, channels, 3, 3] that adds up, for each output, its nine taps, each shifted to its place."""
    kernel = np.zeros((outputs, channels, 3, 3))
    for output, column, row in itertools.product(range(outputs), range(3), range(3)):
        kernel[output, TAPS * output + 3 * column + row, row, column] = 1
    return kernel


def _finish_in_graph(graph: Graph, site: UpsampledConvolution, taps: str) -> None:
    """Put the taps together by matrix products, as `tail.finish` does; the result has the convolution's name."""
    (h, w), (height, width), outputs = site.low, site.high, len(site.conv.weight)
    kind = graph.constants[site.conv.node.input[1]].dtype
    rows = np.hstack(list(tap_matrices(h, site.factors[0]))).astype(kind)
    columns = np.hstack(list(tap_matrices(w, site.factors[1]))).astype(kind).T

    def reshaped(value: str, step: str, *sides: int) -> str:
        shape = graph.add_constant(f"shape_{'_'.join(map(str, sides))}", np.array([0, *sides], np.int64))
        return graph.add("Reshape", [value, shape], f"{site.name}/{step}")

    stacked = reshaped(taps, "stacked", 3 * outputs, 3 * h, w)
    row_matrix = graph.add_constant(f"tap_rows_{h}_{height}", rows)
    tall = graph.add("MatMul", [row_matrix, stacked], f"{site.name}/rows")
    apart = reshaped(tall, "apart", outputs, 3, height, w)
    beside = graph.add("Transpose", [apart], f"{site.name}/beside", perm=[0, 1, 3, 2, 4])
    wide = reshaped(beside, "wide", outputs, height, 3 * w)
    column_matrix = graph.add_constant(f"tap_columns_{w}_{width}", columns)
    graph.remove(site.conv.node)
    graph.add("MatMul", [wide, column_matrix], site.conv.node.output[0])
