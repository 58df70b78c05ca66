"""CUDA graphs: work that is enqueued once and then launched as one, by ``cuda.bindings``; PyCUDA has none.

A graph holds addresses: memory it reads and writes stays where it is for as long as the graph is launched.
"""

import importlib
from collections.abc import Callable
from typing import Any

__all__ = ["Graph", "GraphError"]


class GraphError(RuntimeError):
    """The driver refused to capture or launch; the message holds its name for the reason."""


class Graph:
    """What one function enqueues on a stream, captured to be launched again and again."""

    def __init__(self, stream: Any, enqueue: Callable[[], None]) -> None:
        """Capture what ``enqueue`` puts on ``stream`` (a ``pycuda.driver.Stream``); nothing of it runs yet.

        What it enqueues must have run once before, so that kernels are loaded. The capture is a relaxed one:
        other streams, and allocations meanwhile, are left alone.
        """
        self._driver: Any = importlib.import_module("cuda.bindings.driver")
        self._stream = stream
        graph = self._captured(enqueue)
        try:
            self._executable = self._call("cuGraphInstantiate", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)

    def launch(self) -> None:
        """Enqueue everything captured on the stream that it was captured on."""
        self._call("cuGraphLaunch", self._executable, self._stream.handle)

    def close(self) -> None:
        """Free the graph. Nothing of it may still run."""
        self._call("cuGraphExecDestroy", self._executable)

    def _captured(self, enqueue: Callable[[], None]) -> Any:
        relaxed = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        self._call("cuStreamBeginCapture", self._stream.handle, relaxed)
        try:
            enqueue()
        except BaseException:
            # The stream must leave capture mode whatever happened; what happened is what is told.
            self._driver.cuStreamEndCapture(self._stream.handle)
            raise
        return self._call("cuStreamEndCapture", self._stream.handle)

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *results = getattr(self._driver, name)(*arguments)
        if status != self._driver.CUresult.CUDA_SUCCESS:
            raise GraphError(f"{name}: {status.name}")
        return results[0] if results else None
