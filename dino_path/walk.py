"""Files below a folder, and what could not be read: a silently skipped folder or link would be lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dino_path.errors import DataError

NUM_NAMED = 5  # of what cannot be read, in one message; the rest is counted


@dataclass(frozen=True)
class Unreadable:
    """A folder, or a link to something that was looked for, that could not be read.

    Attributes:
        reason: why, as the end of a sentence: "permission denied", "a link to /mnt/x, which is not there".
    """

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Found:
    """The results of a walk, both sorted by path."""

    files: tuple[Path, ...]
    unreadable: tuple[Unreadable, ...]


def files_below(folder: Path, is_wanted: Callable[[str], bool]) -> Found:
    """Files below `folder` whose name is wanted. Links are followed, every folder once; hidden names are left out.

    Unreadable are: folders that may not be listed or entered, and links that lead nowhere and either have a wanted
    name or no extension (they may have been folders: a disk that is not mounted).
    """
    files: list[Path] = []
    unreadable: list[Unreadable] = []
    seen: set[str] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        real = os.path.realpath(here)
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = _list_folder(here)
        except OSError as error:
            unreadable.append(Unreadable(here, _why(here, error)))
            continue
        subfolders = []
        for entry in entries:
            try:
                kind = _kind_of(entry)
            except OSError as error:
                if is_wanted(entry.name) or not Path(entry.name).suffix:
                    unreadable.append(Unreadable(Path(entry.path), _why(Path(entry.path), error)))
                continue
            if kind == "folder":
                subfolders.append(Path(entry.path))
            elif kind == "file" and is_wanted(entry.name):
                files.append(Path(entry.path))
        waiting += reversed(subfolders)  # in the order of names: which of two links to one folder counts is settled
    return Found(tuple(sorted(files)), tuple(sorted(unreadable, key=lambda one: one.path)))


def folders_in(folder: Path) -> Found:
    """The folders directly in `folder`, and targets of links in it; hidden ones are left out.

    Raises:
        OSError: `folder` itself cannot be listed or entered.
    """
    folders: list[Path] = []
    unreadable: list[Unreadable] = []
    for entry in _list_folder(folder):
        try:
            if _kind_of(entry) == "folder":
                folders.append(Path(entry.path))
        except OSError as error:
            if not Path(entry.name).suffix:
                unreadable.append(Unreadable(Path(entry.path), _why(Path(entry.path), error)))
    return Found(tuple(folders), tuple(unreadable))


def files_like(folder: Path, pattern: str) -> list[Path]:
    """The matches of pathlib's glob in a folder, sorted; empty if the folder does not exist.

    Raises:
        DataError: the folder cannot be listed or entered, which glob would take for an empty one.
    """
    try:
        if not folder.exists():
            return []
        _list_folder(folder)
    except OSError as error:
        raise DataError(
            str(folder),
            f"cannot be read ({_why(folder, error)}).",
            "Its files are needed.",
            "Ask for permission, or check that its disk is mounted.",
        ) from None
    return sorted(folder.glob(pattern))


def name_some(things: Sequence[object]) -> str:
    """The first few of a list, and how many more there are, for a message."""
    more = len(things) - NUM_NAMED
    return "; ".join(map(str, things[:NUM_NAMED])) + (f"; and {more:,} more" if more > 0 else "")


def without_names(unreadable: Iterable[Unreadable], exclude: Iterable[str]) -> tuple[Unreadable, ...]:
    """Those whose file or folder name the user has not excluded."""
    left_out = set(exclude)
    return tuple(one for one in unreadable if one.path.name not in left_out)


def _list_folder(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a readable folder, without hidden names, sorted."""
    with os.scandir(folder) as entries:
        found = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    if not os.access(folder, os.X_OK):
        raise PermissionError
    return found


def _kind_of(entry: os.DirEntry[str]) -> str:
    """ "folder" or "file", also of what a link leads to; "other" for sockets and the like.

    Raises:
        OSError: a link leads nowhere, or where we may not look.
    """
    if entry.is_symlink():
        entry.stat()  # is_dir and is_file would call a link that leads nowhere neither
    return "folder" if entry.is_dir() else "file" if entry.is_file() else "other"


def _why(path: Path, error: OSError) -> str:
    reason = (error.strerror or "permission denied").lower()
    try:
        target = path.readlink()
    except OSError:  # no link, or one that we may not look at
        return reason
    return (
        f"a link to {target}, which is not there"
        if isinstance(error, FileNotFoundError)
        else (f"a link to {target}: {reason}")
    )
