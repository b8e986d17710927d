"""What the disk refuses, in four parts; and whether a place can be written, asked before the work."""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from dino_path.errors import ConfigError, DiskError

ROOM = "Make room there, or name another disk. Finished files are whole: the same command goes on."
# What was found, what is needed, what to do. An error of any other number is a bug of ours.
REASONS: dict[int, tuple[str, str, str]] = {
    errno.ENOSPC: ("the disk is full.", "Free space and free inodes (`df -h`, `df -i`) are needed.", ROOM),
    errno.EDQUOT: ("your quota of the disk is used up.", "Space within the quota is needed.", ROOM),
    errno.EFBIG: ("the file is larger than the disk or a limit (`ulimit -f`) allows.", "Room is needed.", ROOM),
    errno.EROFS: ("the disk is read-only.", "A disk that can be written is needed.", "Name another place."),
    errno.EACCES: ("permission is denied.", "Permission to read or write it is needed.", "Change it, or the path."),
    errno.EPERM: ("the system does not permit it.", "Permission to read or write it is needed.", "Name another place."),
    errno.ENOENT: ("there is no such file or folder.", "It is needed.", "Check the path, and links in it."),
    errno.ENOTDIR: ("a part of the path is a file.", "Folders are needed above a file.", "Correct the path."),
    errno.EISDIR: ("it is a folder.", "A file is needed.", "Correct the path, or remove the folder."),
    errno.EEXIST: ("a file or link is there.", "A free name or a folder is needed.", "Correct the path."),
    errno.ENOTEMPTY: ("the folder is not empty.", "A free name is needed.", "Remove it, or correct the path."),
    errno.ELOOP: ("its links form a loop.", "A path whose links end somewhere is needed.", "Correct the links."),
    errno.ENAMETOOLONG: (
        "the name or path is too long.", "At most 255 bytes a name and 4,095 a path are needed.", "Shorten it.",
    ),
    errno.EIO: ("the disk fails (input/output error).", "A disk in order is needed.", "Ask who looks after the disk."),
    errno.ESTALE: ("the network disk has lost it.", "A mounted disk is needed.", "Mount it again, and call again."),
    errno.ENOTCONN: ("the network disk is gone.", "A mounted disk is needed.", "Mount it again, and call again."),
    errno.ENODEV: ("the disk or device cannot do this.", "An ordinary disk is needed.", "Name another place."),
    errno.ENXIO: ("it is a device or pipe.", "A file or folder is needed.", "Correct the path."),
    errno.EBUSY: ("it is in use.", "A file or folder of our own is needed.", "Name another place."),
    errno.EINVAL: ("the disk does not take this name or action.", "An ordinary disk is needed.", "Name another place."),
    errno.EOPNOTSUPP: ("the disk cannot do this.", "An ordinary disk is needed.", "Name another place."),
    errno.ETXTBSY: ("it is a program that runs.", "A file of our own is needed.", "Name another place."),
    errno.EMFILE: (
        "too many files are open.", "More open files are needed.", "Raise the limit (`ulimit -n`), or fewer workers.",
    ),
    errno.ENFILE: ("too many files are open on this machine.", "More open files are needed.", "Call again later."),
}  # fmt: skip
WITHOUT_NAME = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)  # clear all the same


def disk_error(error: OSError) -> DiskError | None:
    """The refusal that an error of the system stands for; None where it is a bug of ours.

    It is of the disk where it names a file, or where its number says so (a full disk).
    """
    name = error.filename2 or error.filename
    number = error.errno
    if number is None and isinstance(error.__context__, OSError):  # h5py and others tell the number in words alone
        return disk_error(error.__context__)
    if number not in REASONS or not (isinstance(name, str | bytes | os.PathLike) or number in WITHOUT_NAME):
        return None
    found, needed, remedy = REASONS[number]
    return DiskError(os.fsdecode(name) if name is not None else "the disk", found, needed, remedy)


def parse_json(text: str | bytes) -> Any:
    """What JSON holds.

    Raises:
        ValueError: it is no JSON, no UTF-8, or nested deeper than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def refuse_unwritable(folder: Path) -> None:
    """Refuse a folder that cannot be made, or in which no file can be made, before the work instead of after it.

    Nothing stays behind: the nearest folder that exists gets a file without a name, which ends here.

    Raises:
        ConfigError: it cannot.
    """
    path = folder.absolute()
    try:
        nearest = next(place for place in (path, *path.parents) if _is_there(place))
        if not nearest.is_dir():
            what = (
                "a file"
                if nearest.is_file()
                else "a link that leads nowhere"
                if nearest.is_symlink()
                else "a device or pipe"
            )
            raise _unwritable(folder, f"{nearest} is {what}.")
        for part in path.relative_to(nearest).parts:
            if len(os.fsencode(part)) > os.pathconf(nearest, "PC_NAME_MAX"):
                raise OSError(errno.ENAMETOOLONG, "", str(folder))
        with tempfile.TemporaryFile(dir=nearest) as probe:
            probe.write(b"0")
    except ValueError:  # a zero byte in the name
        raise _unwritable(folder, "its name holds a zero byte.") from None
    except OSError as error:
        reason = REASONS.get(error.errno or 0, (f"{(error.strerror or str(error)).lower()}.",))[0]
        raise _unwritable(folder, reason) from None


def refuse_unwritable_file(file: Path) -> None:
    """The same for a file that is to be written, or replaced.

    Raises:
        ConfigError: it is a folder, a device or a pipe; or nothing can be written in its folder.
    """
    refuse_unwritable(file.parent)
    try:
        kind = file.stat().st_mode
    except FileNotFoundError:  # also where a link leads nowhere: it is replaced
        return
    except (OSError, ValueError) as error:
        number = error.errno if isinstance(error, OSError) else None
        raise _unwritable(file, REASONS.get(number or 0, ("its name holds a zero byte.",))[0]) from None
    if not stat.S_ISREG(kind):
        raise _unwritable(file, "it is a folder." if stat.S_ISDIR(kind) else "it is a device or pipe.")


def _is_there(place: Path) -> bool:
    """Whether something has this name, a link that leads nowhere too."""
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _unwritable(place: Path, found: str) -> ConfigError:
    return ConfigError(
        str(place),
        f"nothing can be written here: {found}",
        "A place where you may write is needed.",
        "Name another place as out.",
    )
