"""Channels brought to like magnitudes before they share one INT8 scale: the same function, fewer levels wasted.

INT8 gives a tensor one scale. A channel a hundred times smaller than its neighbours is left one level of 127, however
large the weights are that read it. Multiplying a channel by s where it is made, and the weights that read it by 1/s,
changes nothing else [Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction"]. Here
s is a power of two, so the float network stays the same bit for bit.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto

from unetsharp_engines.contract import INPUT_NAME
from unetsharp_engines.quantization.calibration import session, with_outputs
from unetsharp_engines.quantization.wiring import Wiring
from unetsharp_engines.rewrites.graph import Graph, attributes, name_of

__all__ = ["Equalization"]

_Vector = npt.NDArray[np.float64]

_PASSING = {"AveragePool", "GlobalAveragePool", "Identity", "LeakyRelu", "MaxPool", "Relu", "Resize"}
"""Operations that a positive factor on a channel goes through."""

_WORTH = 0.25
"""Share of the expected noise that factors must leave at most to be moved."""

_STRENGTHS = (0.5, 0.75, 1.0)
"""How far values are made alike: at 1 all are, at 0.5 weights and values are left equally far apart."""

_TYPICAL = 1 / 9
"""Mean square of a channel's values as a share of its largest squared: that of a bell curve seen up to 3 deviations."""

_MOST = 20
"""Largest binary exponent of a factor."""


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """A convolution that reads the channels of a group, from input channel ``offset`` on."""

    conv: NodeProto
    offset: int


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Channels that one convolution or BatchNorm makes, and all that read them."""

    maker: NodeProto
    channels: int
    readers: tuple[_Reader, ...]


class Equalization:
    """Factors for the channels of a float network, by the magnitudes of real pictures.

    `feed` it batches in turn; `apply` gives the network with the factors moved.
    """

    def __init__(self, model: ModelProto, convolutions: Iterable[str], *, threads: int | None = None) -> None:
        """``model`` is float32; ``convolutions`` are those that INT8 will serve: their readings are made alike."""
        self._model, self._served = model, set(convolutions)
        self._groups = _groups(Wiring(Graph(model)), self._served)
        self._values = list(dict.fromkeys(r.conv.input[0] for group in self._groups for r in group.readers))
        self._largest: dict[str, _Vector] = {}
        self._session = session(_probe(model, self._values), threads) if self._values else None

    def feed(self, x_NCHW: npt.NDArray[np.float32]) -> None:
        """Add a batch, as `runtimes.base.network_input` makes it."""
        if self._session is None:
            return  # nothing to compare
        found = self._session.run([f"{value}/channels" for value in self._values], {INPUT_NAME: x_NCHW})
        for value, largest in zip(self._values, found, strict=True):
            self._largest[value] = np.fmax(self._largest.get(value, 0.0), largest.astype(np.float64))

    def apply(self) -> tuple[ModelProto, dict[str, int]]:
        """The network, and by maker of channels so treated the binary orders of magnitude that its factors span."""
        graph = Graph(self._model)
        nodes = {name_of(node): node for node in graph.nodes}
        largest, spans = dict(self._largest), {}
        for group in self._groups:
            readers = [(nodes[name_of(r.conv)], r.offset) for r in group.readers]
            exponents = self._exponents(graph, readers, group.channels, largest)
            if exponents.any():
                _multiply_made(graph, nodes[name_of(group.maker)], np.exp2(exponents))
                for conv, offset in readers:
                    _multiply_read(graph, conv, offset, np.exp2(-exponents))
                for value, offset in {(conv.input[0], offset) for conv, offset in readers}:
                    largest[value] = largest[value] * _spread(np.exp2(exponents), offset, len(largest[value]))
                spans[name_of(group.maker)] = int(np.ptp(exponents))
        return graph.model(), spans

    def _exponents(
        self, graph: Graph, readers: list[tuple[NodeProto, int]], channels: int, largest: dict[str, _Vector]
    ) -> _Vector:
        """Binary exponents of the factors that promise the least noise; zeros where they promise too little."""
        served = [
            (_Weights.of(graph, conv), largest[conv.input[0]], offset)
            for conv, offset in readers
            if name_of(conv) in self._served
        ]
        values = np.max([seen[offset : offset + channels] for _, seen, offset in served], axis=0)
        shares = np.max([w.shares()[offset : offset + channels] for w, _, offset in served], axis=0)
        candidates = [_factors(values, shares, strength) for strength in _STRENGTHS]
        noises = [_noise(served, exponents) for exponents in candidates]
        none = np.zeros(channels)
        best = int(np.argmin(noises))
        return candidates[best] if noises[best] <= _WORTH * _noise(served, none) else none


@dataclass(frozen=True, kw_only=True)
class _Weights:
    """A convolution's weights by output and input channel [O, I / groups], over the kernel."""

    largest: _Vector
    energy: _Vector
    """Sum of squares."""
    count: _Vector
    """Those that are not zero: zero has no rounding."""
    groups: int

    @classmethod
    def of(cls, graph: Graph, conv: NodeProto) -> "_Weights":
        weight = graph.constants[conv.input[1]].astype(np.float64)
        return cls(
            largest=np.abs(weight).max(axis=(2, 3)),
            energy=(weight**2).sum(axis=(2, 3)),
            count=(weight != 0).sum(axis=(2, 3)),
            groups=attributes(conv).get("group", 1),
        )

    def shares(self) -> _Vector:
        """By input channel [I]: the largest share of an output channel's largest weight, 0 to 1."""
        largest = self.largest.max(axis=1, keepdims=True)
        share = np.divide(self.largest, largest, out=np.zeros_like(self.largest), where=largest > 0)
        by_channel: _Vector = share.reshape(self.groups, -1, share.shape[1]).max(axis=1).reshape(-1)
        return by_channel

    def by_weight(self, by_input: _Vector) -> _Vector:
        """Numbers of input channels [I] as the weights see them [O, I / groups]."""
        return np.repeat(by_input.reshape(self.groups, -1), len(self.largest) // self.groups, axis=0)

    def noise(self, largest: _Vector, factors: _Vector) -> float:
        """Expected squared rounding noise at the output, for values [I] that reach ``largest`` before the factors."""
        f, values = self.by_weight(factors), self.by_weight(largest * factors)
        of_values = float((largest * factors).max() ** 2 * (self.energy / f**2).sum())
        steps = (self.largest / f).max(axis=1, keepdims=True)
        return of_values + float((steps**2 * self.count * values**2).sum()) * _TYPICAL


def _noise(served: list[tuple[_Weights, _Vector, int]], exponents: _Vector) -> float:
    """Of all convolutions together, each as a share of what it is without factors."""
    return sum(
        w.noise(seen, _spread(np.exp2(exponents), offset, len(seen))) / max(w.noise(seen, np.ones(len(seen))), 1e-300)
        for w, seen, offset in served
    )


def _factors(values: _Vector, shares: _Vector, strength: float) -> _Vector:
    """Binary exponents of s = share^(1 - strength) / value^strength.

    A channel that was never seen alive gets the factor that makes its weights like the others', one without weights
    that which makes its values so.
    """
    alive, read = values > 0, shares > 0
    known = alive & read
    if not known.any():
        return np.zeros(len(values))
    v, w = (np.log2(np.where(x > 0, x, 1.0)) for x in (values, shares))
    exponents = (1 - strength) * w - strength * v
    exponents = np.where(read & ~alive, w - np.median((w - exponents)[known]), exponents)
    exponents = np.where(alive & ~read, np.median((v + exponents)[known]) - v, exponents)
    return np.clip(np.round(np.where(alive | read, exponents, 0.0)), -_MOST, _MOST)


def _spread(factors: _Vector, offset: int, channels: int) -> _Vector:
    """``factors`` at ``offset`` among ``channels``, ones elsewhere."""
    spread = np.ones(channels)
    spread[offset : offset + len(factors)] = factors
    return spread


def _groups(wiring: Wiring, served: set[str]) -> list[_Group]:
    found = []
    for node in wiring.nodes:
        shape = wiring.shapes.get(node.output[0], ())
        if _makes_channels(wiring, node) and len(shape) == 4 and shape[1] is not None:
            readers = _readers(wiring, node.output[0])
            if readers and any(name_of(reader.conv) in served for reader in readers):
                found.append(_Group(maker=node, channels=shape[1], readers=tuple(readers)))
    return found


def _makes_channels(wiring: Wiring, node: NodeProto) -> bool:
    """Whether a factor can be moved into its weights."""
    return node.op_type in ("Conv", "BatchNormalization") and all(name in wiring.constants for name in node.input[1:])


def _readers(wiring: Wiring, value: str) -> list[_Reader] | None:
    """The convolutions that ``value`` ends in; None if it ends in anything that a factor would change."""
    at, pending, found = {value: 0}, [value], []
    while pending:
        name = pending.pop()
        if name in wiring.outputs:
            return None
        for node in wiring.readers[name]:
            if node.op_type == "Conv" and _can_absorb(wiring, node, name):
                found.append(_Reader(conv=node, offset=at[name]))
            elif (offset := _through(wiring, node, name, at)) is not None:
                at[node.output[0]] = at[name] + offset
                pending.append(node.output[0])
            else:
                return None
    return found


def _can_absorb(wiring: Wiring, conv: NodeProto, value: str) -> bool:
    return conv.input[0] == value and all(name in wiring.constants for name in conv.input[1:])


def _through(wiring: Wiring, node: NodeProto, value: str, at: dict[str, int]) -> int | None:
    """How many channels further ``value`` stands behind ``node``; None if a factor does not go through it."""
    if node.op_type in _PASSING:
        return 0 if node.input[0] == value else None
    others = [name for name in node.input if name != value]
    if node.op_type == "Mul":
        return 0 if len(others) == 1 and others[0] not in at else None
    if node.op_type == "Concat" and attributes(node)["axis"] == 1 and len(others) == len(node.input) - 1:
        before = [wiring.shapes[name][1] for name in node.input[: list(node.input).index(value)]]
        return sum(n for n in before if n is not None) if None not in before and not at.keys() & set(others) else None
    return None


def _probe(model: ModelProto, values: list[str]) -> ModelProto:
    graph = Graph(with_outputs(model, [f"{value}/channels" for value in values]))
    for value in values:
        magnitude = graph.add("Abs", [value], f"{value}/magnitude")
        graph.add("ReduceMax", [magnitude], f"{value}/channels", axes=[0, 2, 3], keepdims=0)
    return graph.model()


def _multiply_made(graph: Graph, node: NodeProto, factors: _Vector) -> None:
    """Let ``node`` make its channels ``factors`` times as large: by its weights, or BatchNorm's scale and shift."""
    for index in (1, 2):
        if index < len(node.input):
            array = graph.constants[node.input[index]]
            _replace(graph, node, index, array * factors.reshape(-1, *[1] * (array.ndim - 1)))


def _multiply_read(graph: Graph, conv: NodeProto, offset: int, factors: _Vector) -> None:
    weight, seen = graph.constants[conv.input[1]], _Weights.of(graph, conv)
    by_input = _spread(factors, offset, weight.shape[1] * seen.groups)
    _replace(graph, conv, 1, weight * seen.by_weight(by_input)[:, :, None, None])


def _replace(graph: Graph, node: NodeProto, index: int, array: npt.NDArray[np.float64]) -> None:
    """Give ``node`` a weight of its own: others may use the old one."""
    name = f"{name_of(node)}/equalized{index}"
    graph.constants.pop(name, None)  # a node may make channels of one group and read another
    node.input[index] = graph.add_constant(name, array.astype(np.float32))
