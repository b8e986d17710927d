"""Reading bytes at an offset from many files, with few of them open."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path

MOST_OPEN_FILES = 64  # per process: many loader workers share a node's limit of open files


class _OpenFile:
    """A file descriptor that closes when nobody uses it any more (so eviction never closes one under a reader)."""

    def __init__(self, path: Path) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


class FileHandles:
    """Least recently used files stay open, per process; threads may share it, and pickling carries no handle."""

    def __init__(self, most_open: int = MOST_OPEN_FILES) -> None:
        self._most_open = most_open
        self._start()

    def read(self, path: Path, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, in one read; fewer where the file ends.

        Raises:
            OSError: the file is missing or cannot be read.
        """
        return os.pread(self._open(path).descriptor, length, offset)

    @property
    def num_open(self) -> int:
        return len(self._files)

    def _open(self, path: Path) -> _OpenFile:
        if self._pid != os.getpid():  # a forked child: the parent's lock may be held for ever
            self._start()
        with self._lock:
            file = self._files.get(path) or _OpenFile(path)
            self._files[path] = file
            self._files.move_to_end(path)
            while len(self._files) > self._most_open:
                self._files.popitem(last=False)
        return file

    def _start(self) -> None:
        self._files: OrderedDict[Path, _OpenFile] = OrderedDict()
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def __reduce__(self) -> tuple[type[FileHandles], tuple[int]]:
        return FileHandles, (self._most_open,)
