"""R5: the deep convolutions at low resolution, all that follows their taps in one kernel."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from unetsharp_engines.contract import TAPS
from unetsharp_engines.cuda.deep import FACTORS
from unetsharp_engines.rewrites.batchnorm import scale_and_shift, statistics_norms
from unetsharp_engines.rewrites.graph import Array, Graph
from unetsharp_engines.rewrites.mish import under_mish
from unetsharp_engines.rewrites.outcome import Outcome
from unetsharp_engines.rewrites.plugin_node import DOMAIN, OP_TYPE, PLUGIN_ATTRIBUTES
from unetsharp_engines.rewrites.taps import pointwise_taps
from unetsharp_engines.rewrites.upsampled import UpsampledConvolution, upsampled_convolutions

__all__ = ["deep_in_one_kernel"]


def deep_in_one_kernel(graph: Graph) -> Outcome:
    """Resize → 3×3 → Mish → BatchNormalization becomes 1×1 → ``UpsampleShiftAddMish``, for equal `FACTORS`.

    With U the Resize, conv(U x) is the sum of the nine taps of x, each upsampled and shifted: proof in `taps`. The 1×1
    makes these taps. Mish acts on each number alone, and BatchNormalization at run time is x' = s·x + t per channel,
    s = scale / √(variance + epsilon), t = shift - s·mean: so the node, which does the three to each sum (see
    `plugin_node`), gives what the four nodes gave. Its taps are tap-major where those of `pointwise_taps` lie class by
    class: a permutation of the 1×1's output channels.
    """
    deep = {site.conv.node.output[0]: site for site in upsampled_convolutions(graph)}
    found = [(norm, under_mish(graph, norm.input[0]) or "") for norm in statistics_norms(graph)]
    sites = [(norm, deep[x]) for norm, x in found if x in deep and _ends_in(graph, x, norm)]
    fine = [(norm, site) for norm, site in sites if site.factors[0] == site.factors[1] and site.factors[0] in FACTORS]
    for norm, site in fine:
        _replace(graph, norm, site)
    if fine:
        graph.import_domain(DOMAIN)
    return Outcome(sites=tuple(site.name for _, site in fine), note=_note(len(deep), len(fine)))


def _note(found: int, done: int) -> str:
    if not found:
        return "no 3×3 convolution of a bilinearly upsampled map"
    return f"{found - done} more have no Mish and BatchNorm alone behind them, or other factors" if found > done else ""


def _ends_in(graph: Graph, value: str, norm: NodeProto) -> bool:
    """Whether all that is made of ``value`` is what ``norm`` reads."""
    return value not in graph.outputs and all(
        reader is norm or all(_ends_in(graph, made, norm) for made in reader.output)
        for reader in graph.consumers(value)
    )


def _replace(graph: Graph, norm: NodeProto, site: UpsampledConvolution) -> None:
    kind = graph.constants[site.conv.node.input[1]].dtype
    affine = np.float64 if kind == np.float64 else np.float32

    def constants(arrays: Iterable[Array], kind: npt.DTypeLike, *parts: str) -> list[str]:
        return [graph.add_constant(f"{site.name}/{p}", a.astype(kind)) for p, a in zip(parts, arrays, strict=True)]

    tap_arrays = map(_tap_major, pointwise_taps(site.conv.weight, site.conv.bias))
    inputs = [site.source, *constants(tap_arrays, kind, "taps/weight", "taps/bias")]
    taps = graph.add("Conv", inputs, f"{site.name}/taps", kernel_shape=[1, 1])
    inputs = [taps, *constants(scale_and_shift(graph, norm), affine, "scale", "shift")]
    graph.remove(norm)
    graph.add(OP_TYPE, inputs, norm.output[0], domain=DOMAIN, factors=site.factors, **PLUGIN_ATTRIBUTES)


def _tap_major(taps: Array) -> Array:
    """Channels class by class [C·9, ...] become tap by tap [9·C, ...]."""
    by_tap: Array = taps.reshape(-1, TAPS, *taps.shape[1:]).swapaxes(0, 1)
    return np.reshape(by_tap, taps.shape)
