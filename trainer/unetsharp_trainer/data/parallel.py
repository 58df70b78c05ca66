"""Work spread over processes that leave with their parent, however it goes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["in_processes", "usable_cores"]

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_T = TypeVar("_T")
_R = TypeVar("_R")


def in_processes(function: Callable[[_T], _R], items: Sequence[_T], workers: int) -> Iterator[_R]:
    """Yield ``function(item)`` for every item as it gets done, by up to ``workers`` fresh processes.

    Items are taken up in order. With one worker, or one item, the work is done in this process. The first exception
    ends it, as does Ctrl-C: items not yet taken up are dropped. ``function`` and items must be picklable.
    """
    count = min(workers, len(items))
    if count <= 1:
        yield from map(function, items)
        return
    # spawn: a fork of a process with threads (OpenMP, CUDA) can hang
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_leave_with_parent)
    try:
        with _one_thread_each():
            futures = [pool.submit(function, item) for item in items]
        for future in as_completed(futures):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def usable_cores() -> int:
    """Cores that this process may use: fewer than the machine has in a container or under ``taskset``."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS, Windows


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started meanwhile run their linear algebra in one thread: the processes are the parallelism."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _leave_with_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # returns when it is gone, killed or not
        os._exit(1)
