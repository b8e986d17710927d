"""Many items through a pool of processes, where an item that kills its process costs no other item."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import cv2

Item = TypeVar("Item")
Result = TypeVar("Result")

DIED = "its worker process died (out of memory, or a crash in a decoder)"


def work_in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], *, num_workers: int
) -> Iterator[tuple[Item, Result | str]]:
    """Each item with its result as they finish, or with the reason when its process died.

    Only as many items as workers are under way at once, so when a process dies few are suspect; each of these is
    tried once more alone, and the one that dies again is to blame.

    Args:
        num_workers: 0 or 1: no other process.
    """
    if num_workers <= 1 or len(items) <= 1:
        for item in items:
            yield item, function(item)
        return
    waiting = list(reversed(items))
    while waiting:
        suspects: list[Item] = []
        with _pool(num_workers) as pool:
            under_way: dict[Future[Result], Item] = {}
            while (waiting or under_way) and not suspects:
                while waiting and len(under_way) < num_workers:
                    item = waiting.pop()
                    under_way[pool.submit(function, item)] = item
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    item = under_way.pop(future)
                    try:
                        yield item, future.result()
                    except BrokenProcessPool:
                        suspects = [item, *under_way.values()]
                        break
        for item in suspects:
            yield item, _alone(function, item)


def _alone(function: Callable[[Item], Result], item: Item) -> Result | str:
    with _pool(1) as pool:
        try:
            return pool.submit(function, item).result()
        except BrokenProcessPool:
            return DIED


def _pool(num_workers: int) -> ProcessPoolExecutor:
    # Spawned, not forked: a fork would copy open slides, locks and the threads of the progress bar.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(num_workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,))
