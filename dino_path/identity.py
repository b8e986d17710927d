"""The identity of a file: its content, not its name. Everything made from a file stores these two values and compares
them.

The *digest* says which content it is, wherever the file lies and whatever it is called. The *stamp* says, without
reading, that nobody has touched the file since: equal stamps are equal contents, and where they differ (a copy, a
moved file, a new time) the digest decides. It is the way of git's index, and keeps a call over 10,000 files quick.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

WHOLE_UP_TO_BYTES = 2**20
SAMPLE_BYTES = 2**16
NUM_SAMPLES = 8
DIGITS = 32  # hexadecimal
MOST_DIRECTORIES = 1000
LONGEST_VALUE = 2**16  # bytes: a description, a colour profile; not the places of a hundred thousand tiles
# By the first bytes of a TIFF: byte order, place of the first directory, and the formats of an entry's count, of a
# directory's number of entries, and of places.
_TIFFS = {
    b"II*\0": ("<", 4, "I", "H"), b"MM\0*": (">", 4, "I", "H"),
    b"II+\0": ("<", 8, "Q", "Q"), b"MM\0+": (">", 8, "Q", "Q"),
}  # fmt: skip
_BYTES_OF_TYPE = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)  # TIFF's types of values, from 0
DICOM_EXTENSIONS = (".dcm", ".dicom")

# SeriesInstanceUID (0020,000E) in either encoding: with its type and a length of two bytes, or a length of four.
_DICOM_SERIES = re.compile(rb"\x20\x00\x0e\x00(?:UI..|..\x00\x00)([0-9.]{1,64})", re.DOTALL)


@dataclass(frozen=True)
class Identity:
    """The identity of a file at the time when something was made from it; empty strings: unknown (older records)."""

    stamp: str = ""
    digest: str = ""


def content_digest(path: Path) -> str:
    """32 hex digits of a SHA-256 over the sizes and bytes of a file, and of those that belong to it (`files_of`).

    A large TIFF has eight more, of its directories: they lie anywhere, and say how large its pixels are.

    A file of up to 1 MiB is read whole. Of a larger one, eight samples of 64 KiB are: its head, its tail, and six
    evenly spread between, at places that its size alone decides. A slide of any size takes half a megabyte of reading.
    Another scan, another compression, another header, a file cut short or grown, and pixels changed all over show. What
    it can miss is a change in a few places of a large file that leaves its size as it was, such as an edited label or
    one tile painted over. Names and times play no part: a copy, a link and a renamed file have the digest of the
    original. Compare with `is_same_content`.

    Raises:
        OSError: a file is missing or cannot be read.
    """
    digests, directories = zip(*sorted(map(_digests_of_one, files_of(path))), strict=True)
    digest = digests[0].hex() if len(digests) == 1 else hashlib.sha256(b"".join(digests)).hexdigest()
    if not any(directories):
        return digest[:DIGITS]
    return f"{digest[:DIGITS]}-{hashlib.sha256(b''.join(directories)).hexdigest()[:8]}"


def is_same_content(one: str, other: str) -> bool:
    """Whether two digests are of the same content; those of earlier versions knew nothing of a TIFF's directories."""
    return one == other or (one[:DIGITS] == other[:DIGITS] and DIGITS in (len(one), len(other)))


def stamp_of(path: Path) -> str:
    """Sizes and times of a file and of those that belong to it, as 32 hex digits; nothing of them is read.

    The time of the last change of the file's entry (ctime) is in it, so that a file put in place with the size and
    the date of the old one shows. A file written again within one tick of the file system's clock (milliseconds; on
    some networks a second), and of the same size, does not.

    Raises:
        OSError: a file is missing or cannot be looked at.
    """
    looks = sorted((look.st_size, look.st_mtime_ns, look.st_ctime_ns) for look in map(os.stat, files_of(path)))
    return hashlib.sha256(repr(looks).encode()).hexdigest()[:DIGITS]


def identity_of(path: Path, known: Identity | None = None) -> Identity:
    """The identity of a file now; read only where its stamp is not that of `known`.

    The stamp is taken first: a file that changes while it is read is read again next time.

    Raises:
        OSError: a file is missing or cannot be read.
    """
    stamp = stamp_of(path)
    if known is not None and known.digest and known.stamp == stamp:
        return known
    return Identity(stamp, content_digest(path))


def files_of(path: Path) -> tuple[Path, ...]:
    """The file itself and those that belong to it, sorted: a slide of some formats is several files.

    MIRAX: the folder of the same name beside `.mrxs`. VSI: the folder `_NAME_`. Hamamatsu VMS and VMU: the files that
    it names. DICOM: the files of its folder that belong to the same series.

    Raises:
        OSError: the file or its folder cannot be read.
    """
    extension = path.suffix.lower()
    if extension in DICOM_EXTENSIONS:
        return tuple(sorted({path, *_files_of_series(path)}))
    match extension:
        case ".mrxs":
            return (path, *_files_below(path.with_suffix("")))
        case ".vsi":
            return (path, *_files_below(path.with_name(f"_{path.stem}_")))
        case ".vms" | ".vmu":
            return tuple(sorted({path, *_files_named_in(path)}))
    return (path,)


def _digests_of_one(path: Path) -> tuple[bytes, bytes]:
    """Of the content, and of a large TIFF's directories."""
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        content = hashlib.sha256(f"{size};".encode())
        if size <= WHOLE_UP_TO_BYTES:
            content.update(stream.read())
            return content.digest(), b""
        for number in range(NUM_SAMPLES):
            stream.seek(number * (size - SAMPLE_BYTES) // (NUM_SAMPLES - 1))
            content.update(stream.read(SAMPLE_BYTES))
        return content.digest(), _digest_of_directories(stream)


def _digest_of_directories(stream: BinaryIO) -> bytes:
    """Of all entries of a TIFF's directories, with their values unless these are long; empty of another file.

    It ends where a damaged directory does: what was read until then counts.
    """
    stream.seek(0)
    start = stream.read(16)
    if start[:4] not in _TIFFS:
        return b""
    order, at, place, number = _TIFFS[start[:4]]
    content, seen = hashlib.sha256(), set[int]()
    entry = struct.Struct(f"{order}HH{place}{place}")
    try:
        (directory,) = struct.unpack_from(f"{order}{place}", start, at)
        while directory and directory not in seen and len(seen) < MOST_DIRECTORIES:
            seen.add(directory)
            stream.seek(directory)
            (count,) = struct.unpack(f"{order}{number}", stream.read(struct.calcsize(number)))
            entries = stream.read(min(count, 2**16) * entry.size)
            (directory,) = struct.unpack(f"{order}{place}", stream.read(struct.calcsize(place)))
            content.update(entries)
            for _, kind, length, where in entry.iter_unpack(entries):
                size = length * _BYTES_OF_TYPE[kind] if kind < len(_BYTES_OF_TYPE) else 0
                if struct.calcsize(place) < size <= LONGEST_VALUE:
                    stream.seek(where)
                    content.update(stream.read(size))
    except (struct.error, OSError, ValueError, OverflowError):  # the last three: places beyond any file
        pass
    return content.digest()


def _files_below(folder: Path) -> list[Path]:
    if not folder.is_dir():  # without its folder the slide is not there, rather than another one
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _files_named_in(path: Path) -> list[Path]:
    """The files beside `path` that its lines `Key=NAME` name."""
    beside = {file.name: file for file in path.parent.iterdir() if file.is_file()}
    names = (line.partition("=")[2].strip() for line in _head(path).decode("latin-1").splitlines())
    return [beside[name] for name in names if name in beside]


def _files_of_series(path: Path) -> list[Path]:
    series_of = _series_in(path.parent, path.parent.stat().st_mtime_ns)
    series = series_of.get(path)
    return [] if series is None else [file for file, other in series_of.items() if other == series]


@lru_cache(maxsize=64)
def _series_in(folder: Path, _mtime_ns: int) -> dict[Path, bytes | None]:
    """The series of each DICOM file in a folder, looked up once until files come or go (thousands may lie there)."""
    files = [file for file in folder.iterdir() if file.suffix.lower() in DICOM_EXTENSIONS and file.is_file()]
    return {file: _dicom_series(file) for file in files}


def _dicom_series(path: Path) -> bytes | None:
    """The series that a DICOM file says it is of; it stands in the first kilobytes, before any pixels."""
    found = _DICOM_SERIES.search(_head(path))
    return None if found is None else found[1]


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(SAMPLE_BYTES)
