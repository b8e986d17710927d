"""One writer at a time in a folder that a command fills for long; who it is, for the one that comes second."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from dino_path.errors import FolderInUse
from dino_path.run import TIME_FORMAT

LOCK_NAME = ".lock"


@dataclass(frozen=True)
class Holder:
    """The process that writes a folder.

    Attributes:
        since: local time.
        job, restarts: SLURM's id of its job, and how often that was queued again; None and 0 outside SLURM.
    """

    host: str
    pid: int
    since: str
    command: str
    job: str | None = None
    restarts: int = 0

    @classmethod
    def this_process(cls) -> Holder:
        return cls(
            socket.gethostname(),
            os.getpid(),
            time.strftime(TIME_FORMAT),
            " ".join(sys.argv[1:3]),
            os.environ.get("SLURM_JOB_ID"),
            int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        )

    def was_requeued(self) -> bool:
        """Whether this process belongs to a later start of the holder's SLURM job.

        SLURM starts a job again only when its processes have ended, though a file server may not have heard of it.
        """
        here = Holder.this_process()
        return self.job is not None and self.job == here.job and self.restarts < here.restarts

    def is_dead(self) -> bool:
        """Whether the process has certainly ended; a process on another machine is assumed to run."""
        if self.was_requeued():
            return True
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except OSError as error:
            return isinstance(error, ProcessLookupError)  # else it is another user's
        return False

    def __str__(self) -> str:
        job = f", SLURM job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host} (since {self.since}{job}: {self.command})"


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Inside, no other process is inside with the same folder, which is made where it is missing.

    The lock ends with the process, however that ends. On a disk without locks the file `.lock` alone says who writes:
    it is removed at the end, and one that a process of this machine or an earlier start of this SLURM job left counts
    for nothing. Where a disk keeps locks on each machine by itself, those of another machine are not seen.

    Raises:
        FolderInUse: another process writes it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / LOCK_NAME
    with file.open("a+", encoding="utf-8") as stream:
        before, is_locked = _read_holder(stream), True
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if before is None or not before.was_requeued():
                raise _in_use(folder, before) from None
            is_locked = False
        except OSError:  # a disk without locks
            if before is not None and not before.is_dead():
                raise _in_use(folder, before) from None
            is_locked = False
        if not file.exists() or not os.path.samestat(os.fstat(stream.fileno()), file.stat()):
            raise _in_use(folder, None)  # its last holder has just removed it: whoever made it again was faster
        stream.truncate(0)
        json.dump(asdict(Holder.this_process()), stream)
        stream.flush()
        try:
            yield
        finally:
            file.unlink(missing_ok=True)
            if is_locked:  # said, since a worker that was forked here has the file open too
                fcntl.flock(stream, fcntl.LOCK_UN)


def _read_holder(stream: IO[str]) -> Holder | None:
    """The last writer of the lock file that did not empty it; None if unknown."""
    stream.seek(0)
    try:
        return Holder(**json.load(stream))
    except (ValueError, TypeError):  # empty, or half written
        return None


def _in_use(folder: Path, holder: Holder | None) -> FolderInUse:
    stop = f"scancel {holder.job}" if holder and holder.job else f"kill {holder.pid}" if holder else "see lsof"
    return FolderInUse(
        str(folder),
        f"is being written by {holder or 'another process'}.",
        "Only one process at a time may write to it; of two, one would lose its results.",
        f"Wait for it, stop it ({stop}), or choose another folder. If its machine died, delete {folder / LOCK_NAME}.",
    )
