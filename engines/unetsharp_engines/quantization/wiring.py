"""Who makes and who reads each value of a graph, looked up at once, and walks along it."""

from collections import defaultdict
from collections.abc import Callable, Iterator

from onnx import NodeProto

from unetsharp_engines.rewrites.graph import Graph, Shape

__all__ = ["Wiring"]


class Wiring:
    """A graph as placement reads it. The graph must not change meanwhile."""

    def __init__(self, graph: Graph) -> None:
        self.shapes: dict[str, Shape] = graph.shapes(batch=1)
        """Of every value, for one image. Inferring them puts the nodes in order."""
        self.nodes: list[NodeProto] = list(graph.nodes)
        self.constants = graph.constants
        self.inputs, self.outputs = set(graph.inputs), set(graph.outputs)
        self.producer: dict[str, NodeProto] = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.readers[name].append(node)

    def tensors_of(self, node: NodeProto) -> list[str]:
        """The values that ``node`` reads, weights and left-out inputs aside."""
        return [name for name in node.input if name and name not in self.constants]

    def is_map(self, value: str) -> bool:
        """Whether ``value`` is [N, C, H, W] of more than one pixel."""
        shape = self.shapes.get(value, ())
        return len(shape) == 4 and shape[2:] != (1, 1)

    def before(self, value: str, stop: Callable[[NodeProto], bool]) -> Iterator[NodeProto]:
        """Nodes that ``value`` comes from, nearest first, each once; nothing beyond a node at which to ``stop``."""
        return self._walk([value], stop, lambda name: [self.producer[name]] if name in self.producer else [], True)

    def behind(self, value: str, stop: Callable[[NodeProto], bool]) -> Iterator[NodeProto]:
        """Nodes that ``value`` goes into, nearest first, each once; nothing beyond a node at which to ``stop``."""
        return self._walk([value], stop, lambda name: self.readers[name], False)

    def _walk(
        self,
        pending: list[str],
        stop: Callable[[NodeProto], bool],
        step: Callable[[str], list[NodeProto]],
        up: bool,
    ) -> Iterator[NodeProto]:
        seen: set[int] = set()
        while pending:
            for node in step(pending.pop(0)):
                if id(node) in seen:
                    continue
                seen.add(id(node))
                yield node
                if not stop(node):
                    pending.extend(self.tensors_of(node) if up else node.output)
