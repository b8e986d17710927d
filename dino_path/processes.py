"""Worker processes: they end with the process that started them, and leave Ctrl-C to it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType

PR_SET_PDEATHSIG = 1  # of Linux's prctl


class _Worker(SpawnProcess):
    """A spawned process that does not run the caller's script again, as Python's own would.

    What it is given is of dino_path. So a script may call us without `if __name__ == "__main__":`, and nothing in it
    happens once for every worker.
    """

    def start(self) -> None:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            super().start()
        finally:
            sys.modules["__main__"] = main


class WorkerContext(SpawnContext):
    """Spawns processes for functions of dino_path's."""

    Process = _Worker


def become_worker(parent: int) -> None:
    """Called first in a worker process: it dies as soon as its parent does, however that ends, and ignores Ctrl-C.

    A terminal sends Ctrl-C to all processes of a command; the main one answers it, and ends its workers. An orphan
    would go on reading slides, and hold the lock of a run folder that it was forked with. Linux only: elsewhere a
    worker notices when it hands over its next result.

    Args:
        parent: process id of who starts it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before it could be watched
            os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def ending_workers() -> Iterator[None]:
    """Within this context, processes are started; on an exception or Ctrl-C they are killed at once.

    A pool would wait for what they are doing: a slide may take minutes. Files are written whole or not at all. To be
    entered after the pool, whose own end waits for its processes.
    """
    before = multiprocessing.active_children()
    try:
        yield
    except BaseException:
        for child in multiprocessing.active_children():
            if child not in before:
                child.kill()
        raise
