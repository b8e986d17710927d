"""SIGTERM and SIGUSR1: what SLURM sends before it takes a node away."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# Preempting a job at once (GraceTime=0), SLURM 22.05 sends SIGTERM to its steps and to the srun of the batch script,
# which sends it on: every process gets two within a second, and would end before it has saved.
SAME_REQUEST_S = 3.0


class StopRequest:
    """Whether this process was told to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def is_made(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Inside, the first of `SIGNALS` is only noted; a second does what it did before (it ends the process).

    What comes within `SAME_REQUEST_S` of the first is part of it.

    Only a main thread can take signals: in any other, nothing is noted.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    noted_s = 0.0

    def note(number: int, _: object) -> None:
        nonlocal noted_s
        if request.signal is None:
            request.signal, noted_s = signal.Signals(number), time.monotonic()
        elif time.monotonic() - noted_s >= SAME_REQUEST_S:
            restore()
            signal.raise_signal(number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield request
    finally:
        restore()
