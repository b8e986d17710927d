"""SIGTERM and SIGUSR1, which SLURM sends before it takes a node away, and SIGINT, which Ctrl-C sends."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# Preempting a job at once (GraceTime=0), SLURM 22.05 sends SIGTERM to its steps and to the srun of the batch script,
# which sends it on: every process gets two within a second, and would end before it has saved.
SAME_REQUEST_S = 3.0
SAME_CTRL_C_S = 0.5  # torchrun sends its processes what the terminal has sent them too; a second press takes longer
STDERR = 2
INTERRUPTED = b"\nCtrl-C: this step is finished and saved first; once more ends at once, and loses what is not saved\n"


class StopRequest:
    """Whether this process was told to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def is_made(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_signals(*, is_told: bool = False) -> Iterator[StopRequest]:
    """Within this context, the first of `SIGNALS` is only recorded; a second has its usual effect (it ends the
    process).

    What comes within `SAME_REQUEST_S` of the first is part of it; of two Ctrl-C, within `SAME_CTRL_C_S`.

    Only a main thread can take signals: in any other, nothing is noted.

    Args:
        is_told: say at once that Ctrl-C was noted: a step may take long.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    noted_s = 0.0

    def note(number: int, _: object) -> None:
        nonlocal noted_s
        is_ctrl_c = number == signal.SIGINT
        if request.signal is None:
            request.signal, noted_s = signal.Signals(number), time.monotonic()
            if is_ctrl_c and is_told:
                os.write(STDERR, INTERRUPTED)  # not by way of Python's buffer, in which the signal may have come
        elif time.monotonic() - noted_s >= (SAME_CTRL_C_S if is_ctrl_c else SAME_REQUEST_S):
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
