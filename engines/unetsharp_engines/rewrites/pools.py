"""Max-pools of one map at several scales: each of the one before."""

from onnx import NodeProto, helper

from unetsharp_engines.rewrites.graph import Graph, Shape, attributes, name_of
from unetsharp_engines.rewrites.outcome import Outcome

__all__ = ["chain_pools"]


def chain_pools(graph: Graph) -> Outcome:
    """Pool a map by 4 and by 8 from its pooling by 2 and by 4, instead of reading the whole map again.

    Exact, rounding included: where tiles of k·m pixels are tiles of m tiles of k pixels, the maximum over a tile is the
    maximum of the maxima over its parts. So it is for windows as large as their strides, without padding, on sides
    that the larger one divides.
    """
    shapes = graph.shapes()
    pools = [(node, side, node.input[0]) for node in graph.nodes if (side := _side(node))]
    even = [pool for pool in pools if _divides(shapes.get(pool[2], ()), pool[1])]
    sites = []
    for node, side, source in even:
        smaller = [(k, p.output[0]) for p, k, of in even if of == source and k < side and side % k == 0]
        if smaller:
            _pool(node, *max(smaller))
            sites.append(name_of(node))
    return Outcome(sites=tuple(sites), note="" if sites else "no map is max-pooled at several scales")


def _side(node: NodeProto) -> int:
    """Side of the square window of a max-pool without overlap and padding; 0 for any other node."""
    given = attributes(node)
    kernel = given.get("kernel_shape", [0])
    plain = (
        node.op_type == "MaxPool"
        and len(node.output) == 1
        and list(given.get("strides", [])) == list(kernel)
        and not any(given.get("pads", [0]))
        and set(given.get("dilations", [1])) == {1}
        and given.get("auto_pad", "NOTSET") == "NOTSET"
    )
    return int(kernel[0]) if plain and set(kernel) == {kernel[0]} and len(kernel) == 2 else 0


def _divides(shape: Shape, side: int) -> bool:
    return len(shape) == 4 and all(length is not None and length % side == 0 for length in shape[2:])


def _pool(node: NodeProto, side: int, value: str) -> None:
    """Let ``node`` pool ``value``, which is pooled by ``side`` already."""
    rest = _side(node) // side
    node.input[0] = value
    kept = [a for a in node.attribute if a.name not in {"kernel_shape", "strides"}]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(n, [rest, rest]) for n in ("kernel_shape", "strides"))])
