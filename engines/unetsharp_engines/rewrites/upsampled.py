"""Where a 3×3 convolution reads an upsampled map: what `taps` can take apart."""

from dataclasses import dataclass

from onnx import NodeProto

from unetsharp_engines.rewrites.convolution import Convolution
from unetsharp_engines.rewrites.graph import Graph, Shape, attributes, name_of

__all__ = ["UpsampledConvolution", "upsampled_convolutions"]


@dataclass(frozen=True, kw_only=True)
class UpsampledConvolution:
    """A 3×3 convolution, padded by one, of a map that a bilinear Resize upsampled by whole factors."""

    conv: Convolution
    source: str
    """The value that is upsampled."""
    low: tuple[int, int]
    """Its height and width."""
    factors: tuple[int, int]

    @property
    def high(self) -> tuple[int, int]:
        """Height and width of the upsampled map, and of the convolution's output."""
        return self.low[0] * self.factors[0], self.low[1] * self.factors[1]

    @property
    def name(self) -> str:
        """Of the convolution's node."""
        return name_of(self.conv.node)


def upsampled_convolutions(graph: Graph) -> list[UpsampledConvolution]:
    """All in ``graph`` whose height and width are fixed."""
    shapes = graph.shapes()
    found = (_site(graph, node, shapes) for node in graph.nodes)
    return [site for site in found if site is not None]


def _site(graph: Graph, node: NodeProto, shapes: dict[str, Shape]) -> UpsampledConvolution | None:
    conv = Convolution.read(graph, node)
    if conv is None or (conv.kernel, conv.pads, conv.strides, conv.group) != ((3, 3), (1, 1, 1, 1), (1, 1), 1):
        return None
    resize = graph.producer(node.input[0])
    if conv.dilations != (1, 1) or resize is None or not _is_bilinear(resize):
        return None
    source = resize.input[0]
    factors = _factors(shapes.get(source, ()), shapes.get(node.input[0], ()))
    if factors is None:
        return None
    height, width = shapes[source][2:]
    assert height is not None
    assert width is not None
    return UpsampledConvolution(conv=conv, source=source, low=(height, width), factors=factors)


def _is_bilinear(node: NodeProto) -> bool:
    """Whether it is the interpolation that `tap_matrices` writes down."""
    given = attributes(node)
    return (
        node.op_type == "Resize"
        and given.get("mode") == "linear"
        and given.get("coordinate_transformation_mode", "half_pixel") in {"half_pixel", "pytorch_half_pixel"}
        and not given.get("antialias", 0)
        and "axes" not in given
    )


def _factors(low: Shape, high: Shape) -> tuple[int, int] | None:
    """Whole upsampling factors of height and width; None where they are not whole, or the sides not fixed."""
    if len(low) != 4 or len(high) != 4 or None in (*low[2:], *high[2:]):
        return None
    pairs = [(a, b) for a, b in zip(low[2:], high[2:], strict=True) if a and b and b % a == 0]
    return (pairs[0][1] // pairs[0][0], pairs[1][1] // pairs[1][0]) if len(pairs) == 2 else None
