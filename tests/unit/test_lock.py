"""One writer at a time in a folder: refused by name, and never locked out by the dead."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dino_path.errors import FolderInUse
from dino_path.lock import LOCK_NAME, only_writer

HOLDER = """
import os, sys, time
from pathlib import Path
from dino_path.lock import only_writer
with only_writer(Path(sys.argv[1])):
    child = os.fork()  # as a DataLoader's worker
    if child == 0:
        from dino_path.processes import become_worker
        become_worker(os.getppid())
        print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk without locks."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture
def outside_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)


def test_the_second_is_refused_and_told_who_writes_and_how_to_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    here = f"process {os.getpid()} on {socket.gethostname()}"
    with (
        only_writer(tmp_path / "run"),
        pytest.raises(FolderInUse, match=rf"{here} \(since .*, SLURM job 4711: (?s:.*)scancel 4711"),
        only_writer(tmp_path / "run"),
    ):
        pass
    with only_writer(tmp_path / "run"):
        pass


def test_a_killed_process_and_its_workers_leave_the_folder_free_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(FolderInUse, match=f"process {holder.pid} "), only_writer(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.read()  # ends when the worker, which has the pipe too, has ended
    with only_writer(tmp_path):
        pass


@pytest.mark.usefixtures("no_locks", "outside_slurm")
def test_without_locks_the_file_says_who_writes_until_that_process_has_ended(tmp_path: Path) -> None:
    with only_writer(tmp_path), pytest.raises(FolderInUse, match=LOCK_NAME), only_writer(tmp_path):
        pass
    with only_writer(tmp_path):  # left in order
        text = (tmp_path / LOCK_NAME).read_text()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / LOCK_NAME).write_text(text.replace(f'"pid": {os.getpid()}', f'"pid": {dead.pid}'))
    with only_writer(tmp_path):  # killed, on this machine
        pass
    (tmp_path / LOCK_NAME).write_text(text.replace(socket.gethostname(), "node9"))
    with pytest.raises(FolderInUse, match=r"on node9(?s:.*)delete"), only_writer(tmp_path):
        pass


@pytest.mark.usefixtures("no_locks")
def test_a_job_that_was_queued_again_takes_over_from_its_own_earlier_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    with only_writer(tmp_path):
        text = (tmp_path / LOCK_NAME).read_text().replace(socket.gethostname(), "node9")
    (tmp_path / LOCK_NAME).write_text(text)
    with pytest.raises(FolderInUse), only_writer(tmp_path):  # two runs in one script
        pass
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with only_writer(tmp_path):
        pass
