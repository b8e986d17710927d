"""How the processes of a run find one another, report missing ones, and learn that one has failed.

They meet at a key-value store (torch's TCPStore), which rank 0 serves, or torchrun. Torch's own rendezvous says in the
end how many have come, but not who; and a rank whose partner has died may wait for it until the time-out.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore  # typed here; torch.distributed hands them on

from dino_path.errors import DinoPathError, LaunchError, StoppedBySignal
from dino_path.rank_watch import CHECK_EVERY_S, EXIT_LOST, GRACE_S, MAX_NAMED, Progress, RankWatch, introduce

POLL_S = 0.1
MAX_SAID = 120  # letters of what gloo or NCCL say
BACKEND_S = 30.0  # that gloo or NCCL wait longer than the watch: they end a process without naming another
TELL_S = 10.0  # for which rank 0, failing, waits until the others know why; one that was killed never does
MEET_S = 3600.0  # extraction waits a week for larger shares, but not for processes that do not come
LEAVE_S = 60.0  # for which rank 0 waits for the others at the end


@dataclass(frozen=True)
class MeetingPoint:
    """Where the processes of one start meet."""

    host: str
    port: int
    name: str
    """Of this start: a store that torchrun keeps over several starts tells them apart by it."""
    is_served: bool
    """By torchrun; else rank 0 does."""

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def server(self) -> str:
        """Who serves the store, in words."""
        return "torchrun" if self.is_served else "rank 0"

    def open(self, *, serve: bool, timeout_s: float) -> Store:
        """A connection of its own to the store, which rank 0 serves unless torchrun does.

        Raises:
            OSError: no such host, or nobody serves it there.
            RuntimeError: it cannot be served here.
        """
        socket.getaddrinfo(self.host, self.port)  # torch would print pages about a host or server that is not there
        if not serve:
            self._wait_for_server(timeout_s)
        store = TCPStore(
            self.host, self.port, is_master=serve, timeout=timedelta(seconds=timeout_s), wait_for_workers=False
        )
        return PrefixStore(self.name, store)

    def _wait_for_server(self, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                socket.create_connection((self.host, self.port), timeout=timeout_s).close()
                return
            except OSError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(POLL_S)


def meet(point: MeetingPoint, rank: int, size: int, *, timeout_s: float) -> Store:
    """Return as soon as all `size` ranks have arrived.

    Rank 0 waits for the others, and tells those present which ranks are missing.

    Raises:
        LaunchError: ranks are missing after `timeout_s`, or came twice, or were told of another size of the world.
    """
    here = f"rank {rank} on {socket.gethostname()}"
    serve = rank == 0 and not point.is_served
    try:
        store = point.open(serve=serve, timeout_s=timeout_s)
        if rank == 0:
            store.set("size", str(size))
        elif not _has(store, ["size"], timeout_s=timeout_s):  # torchrun serves the store, and its rank 0 is missing
            raise TimeoutError("rank 0 has not come")
        _refuse_other_world(point, store, rank, size, here)
        introduce(store, rank, here)
        if rank == 0:
            store.set("verdict", _missing(store, size, timeout_s=timeout_s))
        has_verdict = _has(store, ["verdict"], timeout_s=timeout_s + GRACE_S)
        verdict = store.get("verdict").decode() if has_verdict else "rank 0 did not say that all have come"
    except (OSError, RuntimeError, ValueError) as error:  # torch's DistError is a RuntimeError
        raise _unreachable(point, here, error, serve=serve, timeout_s=timeout_s) from None
    if verdict:
        if serve:
            time.sleep(2 * CHECK_EVERY_S)  # the others read the verdict in this process
        raise LaunchError(
            "process group",
            f"{verdict} within {timeout_s:g} s.",
            f"All {size} processes must reach {point}.",
            "Check the logs of the missing processes, and the number of processes that were started.",
        )
    return store


def _refuse_other_world(point: MeetingPoint, store: Store, rank: int, size: int, here: str) -> None:
    """Refuse a second process of one rank, and one that was told of another world."""
    first_size = int(store.get("size"))
    if first_size != size:
        raise LaunchError(
            "launch environment",
            f"{here} was told of a world of {size} processes, and rank 0 of {first_size}.",
            "All processes of a run need the same world size.",
            "Correct WORLD_SIZE, or use another MASTER_PORT if these are two runs.",
        )
    if store.add(f"times_{rank}", 1) > 1:
        raise LaunchError(
            "launch environment",
            f"two processes are rank {rank} of the run at {point}; one of them is on {socket.gethostname()}.",
            "Every process needs a unique rank.",
            "Correct RANK, or use another MASTER_PORT if these are two runs.",
        )


def _has(store: Store, keys: list[str], *, timeout_s: float) -> bool:
    """Whether all keys are there, or come in time."""
    deadline_s = time.monotonic() + timeout_s
    while not store.check(keys):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(POLL_S)
    return True


def _missing(store: Store, size: int, *, timeout_s: float) -> str:
    """Wait for all ranks; who has not come, and who has, in words, or nothing."""
    keys = [f"here_{rank}" for rank in range(size)]
    if _has(store, keys, timeout_s=timeout_s):
        return ""
    absent = [rank for rank, key in enumerate(keys) if not store.check([key])]
    came = [store.get(key).decode() for rank, key in enumerate(keys) if rank not in absent]
    shown = "; ".join(came[:MAX_NAMED]) + (f"; and {len(came) - MAX_NAMED} more" if len(came) > MAX_NAMED else "")
    return f"{_ranks(absent)} of {size} did not come ({shown} did)"


def _ranks(ranks: list[int]) -> str:
    """[1, 4, 5, 6] -> `ranks 1, 4-6`."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], rank]
        else:
            runs.append([rank])
    words = ", ".join("-".join(map(str, run)) for run in runs)
    return f"rank {words}" if len(ranks) == 1 else f"ranks {words}"


def _unreachable(point: MeetingPoint, here: str, error: Exception, *, serve: bool, timeout_s: float) -> LaunchError:
    """The store could not be opened, or was lost."""
    said = " ".join(str(error).split())[:200]
    if serve:
        return LaunchError(
            "process group",
            f"{here} cannot serve {point} ({said}).",
            "MASTER_ADDR must be an address of rank 0's machine, and MASTER_PORT must be free there.",
            "Correct MASTER_ADDR, or use another MASTER_PORT.",
        )
    return LaunchError(
        "process group",
        f"{here} does not reach {point.server} at {point} within {timeout_s:g} s ({said}).",
        f"{point.server} must run there, and its port must be open between the machines.",
        f"Check the log of {point.server}; correct MASTER_ADDR and MASTER_PORT.",
    )


@contextmanager
def process_group(
    point: MeetingPoint, backend: str, rank: int, size: int, progress: Progress, *, timeout_s: float
) -> Iterator[None]:
    """Inside, torch's process group is there; all leave together, or a failure of one ends all within seconds.

    A process that fails tells the store, and raises its exception. The others end with a `LaunchError` that names it
    when their next exchange fails, or by force where they hang in one. One that hangs or is gone they name themselves
    (see `rank_watch`).

    Args:
        progress: counts the exchanges that this process comes to.
        timeout_s: how long processes wait for one another; at the start, MEET_S at most.
    """
    with _given_up_after(2 * min(timeout_s, MEET_S) + BACKEND_S, point):
        store = meet(point, rank, size, timeout_s=min(timeout_s, MEET_S))
    watch = RankWatch(
        lambda: point.open(serve=False, timeout_s=timeout_s), point.server, progress, rank, size, timeout_s
    )
    watch.start()
    try:
        _init(backend, store, rank, size, timeout_s=timeout_s + BACKEND_S)
        progress.group = dist.group.WORLD
        watch.is_open.wait(timeout_s)  # else one that connects to a server that has just died tries for `timeout_s`
        yield
    except StoppedBySignal:  # of all of them, in order
        _leave(point, store, watch)
        raise
    except BaseException as error:
        first = watch.failed or _announce(store, watch, error)
        watch.done.set()
        if rank == 0 and not point.is_served:  # the others read the news in this process
            with suppress(OSError, RuntimeError):  # of the store; what is to be raised is the failure itself
                _has(store, [f"told_{other}" for other in range(1, size)], timeout_s=TELL_S)
        if first is None or isinstance(error, DinoPathError) or not isinstance(error, Exception):
            raise
        raise LaunchError(
            "process group",
            f"{watch.here} ends because another process has failed.",
            first,
            "Check the log of that process; the same command, started again in all processes, continues.",
        ) from None
    else:
        _leave(point, store, watch)
    finally:
        watch.end()


@contextmanager
def _given_up_after(limit_s: float, point: MeetingPoint) -> Iterator[None]:
    """End the process if the block takes longer than this: a store whose server has stopped never answers."""

    def end() -> None:
        print(f"{point.server} does not answer at {point}: it is stopped", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(EXIT_LOST)

    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _init(backend: str, store: Store, rank: int, size: int, *, timeout_s: float) -> None:
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_s))
    except RuntimeError as error:
        raise LaunchError(
            "process group",
            f"rank {rank} on {socket.gethostname()} cannot exchange tensors ({' '.join(str(error).split())[:200]}).",
            f"{backend} must reach every process from every other over one network.",
            "Name the network interface in NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME; see `dino-path doctor`.",
        ) from None


def _leave(point: MeetingPoint, store: Store, watch: RankWatch) -> None:
    """End the process group in order. Rank 0 serves the store, and so goes last."""
    watch.progress.leave()
    dist.destroy_process_group()
    watch.leave(store)
    store.add("gone", 1)
    serves, deadline_s = watch.rank == 0 and not point.is_served, time.monotonic() + LEAVE_S
    while serves and store.add("gone", 0) < watch.size and time.monotonic() < deadline_s:
        time.sleep(0.02)


def _announce(store: Store, watch: RankWatch, error: BaseException) -> str | None:
    """Tell all processes that this one fails; returns an earlier report of another process, or who is gone, or None."""
    ours = f"{watch.here}: {type(error).__name__}: {error}"
    try:
        gone = ""
        if isinstance(error, RuntimeError) and not store.check(["failed"]):  # as gloo's, when a connection ends
            gone = watch.name_silent(store)
        told = f"{gone} ({' '.join(ours.split())[:MAX_SAID]})" if gone else ours
        first = store.compare_set("failed", "", told).decode()
        store.set(f"told_{watch.rank}", "")
    except (OSError, RuntimeError):
        return watch.gone
    return None if first == ours else first
