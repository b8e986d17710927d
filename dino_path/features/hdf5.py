"""How HDF5 files are written: complete or not at all, and a full disk is told once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import h5py

from dino_path.atomic import atomic_write

T = TypeVar("T")


@contextmanager
def new_hdf5(file: Path) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """An HDF5 file that appears under `file` when it is complete, and a function that raises what went wrong so far.

    Whatever went wrong is raised at the end, too.

    Raises:
        OSError: it could not be written.
    """
    with atomic_write(file, "w+b") as stream:
        disk = _Disk(stream)
        try:
            with h5py.File(disk, "w") as h5:
                yield h5, disk.check
        finally:
            disk.check()


class _Disk:
    """Keeps the first failure from HDF5, which would write again, and print a traceback, for every object it closes."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._failure: OSError | None = None

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def read(self, size: int) -> bytes:
        return self._tried(self._stream.read, size, otherwise=b"")

    def readinto(self, target: Any) -> int:
        return self._tried(self._stream.readinto, target, otherwise=len(target))

    def write(self, data: Any) -> int:
        return self._tried(self._stream.write, data, otherwise=len(data))

    def seek(self, place: int, whence: int = 0) -> int:
        return self._tried(self._stream.seek, place, whence, otherwise=place)

    def tell(self) -> int:
        return self._tried(self._stream.tell, otherwise=2**62)  # HDF5 asks for the end of the file by it

    def truncate(self, size: int) -> int:
        return self._tried(self._stream.truncate, size, otherwise=size)

    def flush(self) -> None:
        self._tried(self._stream.flush, otherwise=None)

    def _tried(self, call: Callable[..., T], *arguments: Any, otherwise: T) -> T:
        if self._failure is None:
            try:
                return call(*arguments)
            except OSError as error:
                self._failure = error
        return otherwise
