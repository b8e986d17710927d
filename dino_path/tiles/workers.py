"""Many items through a pool of processes, where an item that fails, or kills its process, costs no other item."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TypeVar

import cv2

from dino_path.errors import DinoPathError
from dino_path.processes import WorkerContext, become_worker, ending_workers

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

DIED = "its worker process died (out of memory, or a crash in a decoder)"


@dataclass(frozen=True)
class Failure:
    """Why an item has no result."""

    reason: str


def work_in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], *, num_workers: int
) -> Iterator[tuple[Item, Result | Failure]]:
    """Each item with its result as they finish, or with the reason when it raised an exception or its process died.

    Only as many items as workers are under way at once, so when a process dies few are suspect; each of these is
    tried once more alone, and the one that dies again is to blame.

    Args:
        num_workers: 0: no other process, and a crash in a C library ends this one.

    Raises:
        DinoPathError: what `function` raises of this kind concerns all items, and ends the work.
    """
    waiting = list(reversed(items))
    while waiting:
        suspects: list[Item] = []
        with _pool(min(num_workers, len(waiting))) as pool, ending_workers():
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
                    outcome = _outcome(future)
                    yield item, outcome
        for item in suspects:
            with _pool(1) as pool, ending_workers():
                outcome = _outcome(pool.submit(function, item))
                yield item, outcome


def _outcome(future: Future[Result]) -> Result | Failure:
    """What came of an item. Whatever it raised concerns it alone, and its traceback goes to the log."""
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, BrokenProcessPool):
        return Failure(DIED)
    if isinstance(error, DinoPathError):
        raise error
    logger.error("an unexpected error", exc_info=error)
    return Failure(f"unexpected {type(error).__name__}: {' '.join(str(error).split())} (its traceback is in the log)")


def _pool(num_workers: int) -> Executor:
    if num_workers == 0:
        return ThreadPoolExecutor(1)
    # Spawned, not forked: a fork would copy open slides, locks and the threads of the progress bar.
    return ProcessPoolExecutor(
        num_workers, mp_context=WorkerContext(), initializer=_prepare_worker, initargs=(os.getpid(),)
    )


def _prepare_worker(parent: int) -> None:
    become_worker(parent)
    cv2.setNumThreads(1)
