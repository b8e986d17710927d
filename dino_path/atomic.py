"""How files and folders are written: complete, or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

logger = logging.getLogger(__name__)

TEMPORARY = re.compile(r"^\..+\.\d+(-(?P<host>[0-9a-f]{4})[0-9a-f]*)?\.tmp$")
LONGEST_NAME_BYTES = 220  # of a file, within the name of its temporary file: file systems take 255
FOREIGN_S = 3600.0  # without a change: what another machine is writing is younger
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's renameat2
_swept: set[Path] = set()  # folders that this process has cleaned of abandoned files


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that appears under `path` only when it is complete (temp file, fsync, rename).

    On any exception the temporary file is removed and an older file under `path` stays as it was. While it is written
    it is locked, so that `is_abandoned` can tell it from what a killed process left: the first write of a process to a
    folder deletes such files there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(path)
    try:
        with _open_locked(temporary, mode) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            temporary.replace(path)  # still locked
    except OSError as error:
        _name_in(error, path, temporary)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _name_in(error: OSError, path: Path, temporary: Path) -> None:
    """Put the target's name into the error: a full disk names none, and the temporary name would mean nothing."""
    name = error.filename
    if error.errno is not None and (name is None or (isinstance(name, str) and Path(name).is_relative_to(temporary))):
        error.filename, error.filename2 = str(path), None


@contextmanager
def whole_folder(path: Path, *, replaced: Collection[str]) -> Iterator[Path]:
    """A folder to fill, which appears under `path` only when it is complete.

    An older folder is replaced in one step, so that no reader sees parts of both. On any exception the older folder
    stays unchanged. Where the system cannot exchange folders, a kill between two renames leaves the older one as
    `<name>.replaced`; the next call puts it back first.

    Args:
        replaced: names in the older folder that go with it. Everything else in it is taken over.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{_cut(path.name)}.replaced")
    if aside.exists() and not path.exists():
        aside.rename(path)
    building = _temporary_path(path)
    building.mkdir()
    descriptor = os.open(building, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield building
        for file in building.rglob("*"):
            if file.is_file():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
        if path.is_dir() and any(path.iterdir()):
            _take_over(path, building, replaced)
            _exchange(building, path, aside)
        else:
            building.replace(path)
    except OSError as error:
        _name_in(error, path, building)
        raise
    finally:
        shutil.rmtree(building, ignore_errors=True)  # by now the older folder, or a half-filled one
        os.close(descriptor)


def _take_over(old: Path, new: Path, replaced: Collection[str]) -> None:
    """Link, or else copy, what a user added to the older folder."""
    for entry in old.iterdir():
        target = new / entry.name
        if entry.name in replaced or target.exists():
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, target, symlinks=True, copy_function=_link)
        else:
            _link(entry, target)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target, follow_symlinks=False)


def _exchange(new: Path, old: Path, aside: Path) -> None:
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # Linux
    names = os.fsencode(new), os.fsencode(old)
    if rename is not None and rename(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0:
        return
    old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside, ignore_errors=True)


def _temporary_path(path: Path) -> Path:
    """A new hidden name beside `path` for what will be renamed to it.

    Containers and nodes of a cluster share process ids: part of the machine's name and a token keep them apart.
    """
    if path.parent not in _swept:
        _swept.add(path.parent)
        remove_abandoned(path.parent)
    return path.with_name(f".{_cut(path.name)}.{os.getpid()}-{_host()}{secrets.token_hex(3)}.tmp")


def _cut(name: str) -> str:
    return os.fsdecode(os.fsencode(name)[:LONGEST_NAME_BYTES])


def is_abandoned(temporary: Path) -> bool:
    """Whether this temporary file or folder is no longer being written; False if locks cannot tell.

    Some disks keep locks on each machine by itself: what another machine wrote within the hour counts as being written.
    """
    try:
        descriptor = os.open(temporary, os.O_RDONLY if temporary.is_dir() else os.O_RDWR)
    except OSError:  # gone, or not ours
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        name = TEMPORARY.search(temporary.name)
        is_of_here = name is not None and name["host"] == _host()
        return is_of_here or time.time() - os.fstat(descriptor).st_mtime > FOREIGN_S
    except OSError:  # locked, or a file system without locks
        return False
    finally:
        os.close(descriptor)


def remove_abandoned(folder: Path) -> None:
    """Delete the temporary files and folders that killed processes left in `folder`."""
    with os.scandir(folder) as entries:
        found = [folder / entry.name for entry in entries if TEMPORARY.search(entry.name)]
    for temporary in filter(is_abandoned, found):
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):  # another process was faster
                temporary.unlink()


def _open_locked(temporary: Path, mode: str) -> IO[Any]:
    while True:
        stream = temporary.open(mode, encoding=None if "b" in mode else "utf-8")
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if temporary.exists():
            return stream
        stream.close()  # another process took it for abandoned before it was locked


@cache
def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:4]


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the lock file is created and removed here.

    A process that dies releases it. A file system without locks, or with locks of one machine only, lets more than one
    process in.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("ab") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("%s: waiting for another process", path.parent)
                fcntl.flock(stream, fcntl.LOCK_EX)
            except OSError:
                pass
            if not _is_at(stream, path):
                continue  # its last holder has removed it, and who came later has another one
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(stream: IO[Any], path: Path) -> bool:
    """Whether an open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def write_json(path: Path, record: Any) -> None:
    """Write `record` as indented JSON, atomically."""
    with atomic_write(path) as stream:
        json.dump(record, stream, indent=2, sort_keys=False)
        stream.write("\n")
