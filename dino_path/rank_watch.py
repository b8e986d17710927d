"""How the processes of a run watch each other, and all end when one of them fails, hangs or dies.

A thread of each process writes a line to the store every second: a number that grows with every line, how many
exchanges the process has come to, and where in the code it is. So a process that waits longer than it may can say for
whom: NCCL waits in silence, and gloo names an address. Time is counted in lines that this process itself has written:
a job that SLURM suspended and resumed finds nobody late.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from torch._C._distributed_c10d import ProcessGroup, Store

CHECK_EVERY_S = 1.0
LISTEN_S = 3.0  # for lines of others: who writes none is dead or stopped
END_S = 10.0  # for which the last answer of the store is awaited; a busy machine may take seconds
GRACE_S = 5.0  # from the news that another process has failed to the end of this one
SILENT_S = 120.0  # without a line: a process is dead or stopped (one that reads a disk which hangs goes on writing)
EXIT_LOST = 2  # as a refusal: the process that failed has said more
MAX_NAMED = 8
PACKAGE = str(Path(__file__).parent) + os.sep


class Progress:
    """How many exchanges this process has come to; the same number on all that keep up with each other."""

    def __init__(self) -> None:
        self._arrived = 0
        self.group: ProcessGroup | None = None
        """torch's, which counts every exchange, also those that FSDP makes within a step."""

    @property
    def count(self) -> int:
        group = self.group  # the watch's thread reads this while the main thread may leave
        if group is None:
            return self._arrived
        return self._arrived + int(group._get_sequence_number_for_group())  # type: ignore[attr-defined]

    def leave(self) -> None:
        """Keep the count, and let go of the group: its threads end only with it, and must before Python does."""
        self._arrived, self.group = self.count, None

    def arrive(self) -> None:
        """Note that an exchange, or a part of the work that all have in common, begins."""
        self._arrived += 1


@dataclass(frozen=True)
class Line:
    """The last line of a process.

    Attributes:
        beat: of its lines, from 0.
        count: see `Progress`.
        place: file and line of its main thread.
    """

    beat: int
    count: int
    place: str

    @classmethod
    def of(cls, text: bytes) -> Line:
        beat, count, place = text.decode().split(" ", 2)
        return cls(int(beat), int(count), place)

    def __str__(self) -> str:
        return f"{self.beat} {self.count} {self.place}"


LEFT = Line(-1, sys.maxsize, "left")


def introduce(store: Store, rank: int, here: str) -> None:
    """Write this process's first line, and who it is, before anyone looks for them."""
    store.set(f"line_{rank}", str(Line(0, 0, "its start")))
    store.set(f"here_{rank}", here)


class RankWatch(threading.Thread):
    """Ends this process when another has failed, hangs or is gone, and it has not ended by itself soon after.

    Args:
        open_store: gives a connection of the thread's own.
        server: who serves the store, in words.
        timeout_s: how long the others may keep this process waiting, and the store may stay silent.
    """

    def __init__(
        self, open_store: Callable[[], Store], server: str, progress: Progress, rank: int, size: int, timeout_s: float
    ) -> None:
        super().__init__(name="watch over the other processes", daemon=True)
        self.open_store, self.server, self.progress = open_store, server, progress
        self.rank, self.size, self.timeout_s = rank, size, timeout_s
        self.here = f"rank {rank} on {socket.gethostname()}"
        self.gone = f"{server}, which served the meeting point, is gone."
        self.failed = ""
        self.done = threading.Event()
        self.is_open = threading.Event()
        """The connection stands, or failed: from now on the death of the server is noticed at once."""
        self.beat = 0
        self._neighbour = (rank + 1) % size

    def start(self) -> None:
        super().start()
        threading.Thread(target=self._end, name="end of this process", daemon=True).start()

    def run(self) -> None:
        waited_for, neighbour_line = -1, b""
        waits_since = silent_since = 0
        try:
            try:
                store = self.open_store()
            finally:
                self.is_open.set()
            while not self.done.wait(CHECK_EVERY_S):
                if store.check(["failed"]):
                    self.failed = store.get("failed").decode()
                    store.set(f"told_{self.rank}", "")
                    break
                self.beat += 1
                count = self.progress.count
                store.set(f"line_{self.rank}", str(Line(self.beat, count, _place())))
                if count != waited_for:
                    waited_for, waits_since = count, self.beat
                elif (self.beat - waits_since) * CHECK_EVERY_S > self.timeout_s:
                    self._accuse(store, self._late(store, waited_for))
                    waits_since = self.beat
                line = store.get(f"line_{self._neighbour}")
                if line != neighbour_line or Line.of(line) == LEFT:
                    neighbour_line, silent_since = line, self.beat
                elif (self.beat - silent_since) * CHECK_EVERY_S > min(SILENT_S, self.timeout_s):
                    self._accuse(
                        store, _no_sign_of_life(store, [self._neighbour], (self.beat - silent_since) * CHECK_EVERY_S)
                    )
                    silent_since = self.beat
        except (OSError, RuntimeError):
            self.failed = self.failed or self.gone

    def leave(self, store: Store) -> None:
        """Stop writing lines, and record that this process has ended normally, so that nobody waits for it."""
        self.end()
        store.set(f"line_{self.rank}", str(LEFT))

    def end(self) -> None:
        """Wait for the answer that this thread may be waiting for: while Python ends, it would abort the process."""
        self.done.set()
        self.join(END_S)

    def name_silent(self, store: Store) -> str:
        """Who writes no lines now, in words, or nothing: the end of a connection says that some process has died."""
        ranks = self._silent(store, _lines(store, self.size))
        return _no_sign_of_life(store, ranks, LISTEN_S) if ranks else ""

    def _silent(self, store: Store, before: list[Line]) -> list[int]:
        """Ranks that have written no line since these, and for LISTEN_S."""
        time.sleep(LISTEN_S)
        after = _lines(store, self.size)
        return [rank for rank in range(self.size) if rank != self.rank and LEFT != after[rank] == before[rank]]

    def _late(self, store: Store, count: int) -> str:
        """Who has not come to the exchange that this process waits in, in words, or nothing."""
        lines = _lines(store, self.size)
        late = [rank for rank, line in enumerate(lines) if line.count < count]
        if not late:
            return ""
        if silent := [rank for rank in self._silent(store, lines) if rank in late]:
            return _no_sign_of_life(store, silent, LISTEN_S)
        places = "; ".join(f"rank {rank} is at {lines[rank].place}" for rank in late[:MAX_NAMED])
        have = "has" if len(late) == 1 else "have"
        return f"{_names(store, late)} {have} kept the others waiting for {self.timeout_s:g} s: {places}"

    def _accuse(self, store: Store, said: str) -> None:
        if said:
            store.compare_set("failed", "", said)  # read back in the next second

    def _end(self) -> None:
        """End this process by force where its main thread hangs; nothing less ends that."""
        known, silent = -1, 0
        while not self.failed and not self.done.wait(CHECK_EVERY_S):
            known, silent = self.beat, silent + 1 if self.beat == known else 0
            if silent * CHECK_EVERY_S > self.timeout_s:  # most calls of a store wait for ever
                self.failed = (
                    f"{self.server}, which serves the meeting point, has not answered for {self.timeout_s:g} s: it is"
                    " stopped, or its machine or network is down."
                )
        if self.failed and not self.done.wait(GRACE_S):
            is_own = self.failed.startswith(f"{self.here} ")
            said = self.failed if is_own else f"{self.here} ends because another process has failed: {self.failed}"
            print(said, file=sys.stderr, flush=True)  # noqa: T201
            os._exit(EXIT_LOST)


def _lines(store: Store, size: int) -> list[Line]:
    return [Line.of(line) for line in store.multi_get([f"line_{rank}" for rank in range(size)])]


def _names(store: Store, ranks: list[int]) -> str:
    names = ", ".join(store.get(f"here_{rank}").decode() for rank in ranks[:MAX_NAMED])
    return names + (f" and {len(ranks) - MAX_NAMED} more" if len(ranks) > MAX_NAMED else "")


def _no_sign_of_life(store: Store, ranks: list[int], seconds: float) -> str:
    have = "has" if len(ranks) == 1 else "have"
    return (
        f"{_names(store, ranks)} {have} shown no sign of life for {seconds:g} s: killed (by the system, where memory"
        " ran out) or stopped, or the machine or network is down"
    )


def _place() -> str:
    """The innermost line of this package that the main thread is at."""
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    innermost = frame
    while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    frame = frame or innermost
    if frame is None:
        return "its end"
    file = frame.f_code.co_filename.removeprefix(PACKAGE)
    return f"{file}:{frame.f_lineno} ({frame.f_code.co_name})"
