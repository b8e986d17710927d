"""The same slide under several names: a link, a hard link, a copy. It counts once, or its tiles would count twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dino_path.identity import content_digest


def same_slides(files: Sequence[Path]) -> dict[Path, tuple[Path, str]]:
    """file -> (the earlier file that is the same slide, "a link", "a hard link" or "a copy"), for all but the first.

    Only files of equal size are read. Empty and unreadable files are never duplicates.
    """
    by_size: dict[int, list[Path]] = {}
    for file in files:
        size = _size(_content_file(file))
        if size:
            by_size.setdefault(size, []).append(file)
    same: dict[Path, tuple[Path, str]] = {}
    for alike in by_size.values():
        if len(alike) < 2:
            continue
        first_of: dict[tuple[object, ...], Path] = {}
        for file in alike:
            content = _content_file(file)
            keys = [_inode(content)]
            if digest := _digest(file):
                keys.append((digest,))
            known = next((key for key in keys if key in first_of), None)
            if known is None:
                first_of |= dict.fromkeys(keys, file)
            else:
                is_link = file.is_symlink() or first_of[known].is_symlink()
                how = "a copy" if known != keys[0] else "a link" if is_link else "a hard link"
                same[file] = (first_of[known], how)
    return same


def _content_file(slide: Path) -> Path:
    """The file that identifies a slide; for MIRAX, the index in its folder."""
    index = slide.with_suffix("") / "Slidedat.ini"
    return index if slide.suffix.lower() == ".mrxs" and index.is_file() else slide


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0  # it will fail by its own name when it is tiled


def _inode(file: Path) -> tuple[object, ...]:
    status = file.stat()
    return status.st_dev, status.st_ino


def _digest(file: Path) -> str | None:
    """Of the slide's content; None: not readable."""
    try:
        return content_digest(file)
    except OSError:
        return None
