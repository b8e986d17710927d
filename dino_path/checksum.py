"""Checksums at the end of dino_path's array files: NumPy reads the array before them and ignores the rest."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO

DIGEST_BYTES = 16
MARK = b"dino_path blake2b"
BLOCK = 1 << 22


def seal(stream: IO[bytes]) -> None:
    """Append the checksum of all that was written to a file, which is open for reading too (`w+b`)."""
    size = stream.seek(0, os.SEEK_END)
    digest = _digest(stream, size)
    stream.seek(size)
    stream.write(MARK + digest)


def has_checksum(file: Path) -> bool:
    """Whether `seal` was called for this file; False for a truncated file.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END) - len(MARK) - DIGEST_BYTES
        stream.seek(max(size, 0))
        return stream.read(len(MARK)) == MARK


def is_intact(file: Path) -> bool:
    """Whether a file is unchanged since `seal`; False if it has no checksum.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END) - len(MARK) - DIGEST_BYTES
        if size < 0:
            return False
        stream.seek(size)
        stored = stream.read()
        return stored == MARK + _digest(stream, size)


def _digest(stream: IO[bytes], size: int) -> bytes:
    """Of the first `size` bytes."""
    content = hashlib.blake2b(digest_size=DIGEST_BYTES)
    stream.seek(0)
    while size > 0:
        block = stream.read(min(BLOCK, size))
        content.update(block)
        size -= len(block) or size
    return content.digest()
