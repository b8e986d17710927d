"""Many items through a pool of processes, where an item that fails, or kills its process, costs no other item."""

from __future__ import annotations

import faulthandler
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import cv2

from dino_path.errors import DinoPathError
from dino_path.processes import WorkerContext, become_worker, ending_workers

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

DIED = "its worker process died (out of memory, or a crash in a decoder)"
GRACE_S = 60.0  # a process that is still in a decoder so long after its time is ended from outside
NO_MEMORY = "(-4:Insufficient memory)"  # of OpenCV, whose error has no type of its own


@dataclass(frozen=True)
class Failure:
    """Why an item has no result."""

    reason: str


@dataclass(frozen=True)
class Limits:
    """What an item may take before it fails, alone: the last resort, where its work cannot be foreseen.

    Attributes:
        seconds: None: no limit.
        memory_gb: of the process that works on it, in 10^9 bytes, what it starts with included; None: no limit. Linux
            alone counts it.
    """

    seconds: float | None = None
    memory_gb: float | None = None


NO_LIMITS = Limits()


class OutOfTime(BaseException):
    """Raised in a worker wherever it is; no child of Exception, which decoders catch."""


def work_in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], *, num_workers: int, limits: Limits = NO_LIMITS
) -> Iterator[tuple[Item, Result | Failure]]:
    """Each item with its result as they finish, or with the reason when it raised an exception or its process died.

    Only as many items as workers are under way at once, so when a process dies few are suspect; each of these is
    tried once more alone, and the one that dies again is to blame.

    Args:
        num_workers: 0: no other process, a crash in a C library ends this one, and there are no limits.

    Raises:
        DinoPathError: what `function` raises of this kind concerns all items, and ends the work.
    """
    waiting = list(reversed(items))
    if num_workers and limits.seconds is not None:
        function = partial(_in_time, function, limits.seconds)
    while waiting:
        suspects: list[Item] = []
        with _pool(min(num_workers, len(waiting)), limits) as pool, ending_workers():
            under_way: dict[Future[Result], Item] = {}
            while (waiting or under_way) and not suspects:
                while waiting and len(under_way) < max(num_workers, 1):
                    item = waiting.pop()
                    under_way[pool.submit(function, item)] = item
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    item = under_way.pop(future)
                    if isinstance(future.exception(), BrokenProcessPool):
                        suspects = [item, *under_way.values()]
                        break
                    outcome = _outcome(future, limits)
                    yield item, outcome
        for item in suspects:
            with _pool(1, limits) as pool, ending_workers():
                outcome = _outcome(pool.submit(function, item), limits)
                yield item, outcome


def _in_time(function: Callable[[Item], Result], seconds: float, item: Item) -> Result:
    """The result of an item, unless it takes longer.

    Raises:
        OutOfTime: it took longer. In a decoder that does not come back it cannot be raised: GRACE_S later the process
            ends.
    """
    signal.signal(signal.SIGALRM, _raise_out_of_time)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + GRACE_S, exit=True)
    try:
        return function(item)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()


def _raise_out_of_time(*_: object) -> None:
    raise OutOfTime


def _outcome(future: Future[Result], limits: Limits) -> Result | Failure:
    """The result of an item. An error affects only this item, and its traceback goes to the log."""
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, BrokenProcessPool):
        return Failure(DIED)
    if isinstance(error, OutOfTime):
        return Failure(f"it was not done after {limits.seconds:g} s (slides.max_seconds)")
    if isinstance(error, MemoryError) or NO_MEMORY in str(error):
        at_most = "there is" if limits.memory_gb is None else f"{limits.memory_gb:g} GB (slides.max_memory_gb)"
        return Failure(f"it needs more memory than {at_most}")
    if isinstance(error, DinoPathError):
        raise error
    logger.error("an unexpected error", exc_info=error)
    return Failure(f"unexpected {type(error).__name__}: {' '.join(str(error).split())} (its traceback is in the log)")


def _pool(num_workers: int, limits: Limits) -> Executor:
    if num_workers == 0:
        return ThreadPoolExecutor(1)
    # Spawned, not forked: a fork would copy open slides, locks and the threads of the progress bar.
    return ProcessPoolExecutor(
        num_workers, mp_context=WorkerContext(), initializer=_prepare_worker, initargs=(os.getpid(), limits.memory_gb)
    )


def _prepare_worker(parent: int, memory_gb: float | None) -> None:
    become_worker(parent)
    cv2.setNumThreads(1)
    if memory_gb is not None and sys.platform == "linux":
        # Of what a process may write to: files and reserved addresses do not count, as they would for RLIMIT_AS.
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = round(memory_gb * 1e9)
        resource.setrlimit(
            resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )
