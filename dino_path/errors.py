"""Errors that a user can fix. `cli` prints them without a traceback and exits with code 2."""

LONGEST_LINE = 1000  # characters of a message: it may quote what it was given, 5,000 digits or a file's whole line


class DinoPathError(Exception):
    """Base of all refusals.

    The message has four parts: which thing, what we found, what we needed, what to do. Of a line that is too long the
    middle is left out.
    """

    def __init__(self, thing: str, found: str, needed: str, remedy: str) -> None:
        thing, found, needed, remedy = (
            "\n".join(map(_shortened, part.split("\n"))) for part in (thing, found, needed, remedy)
        )
        self.thing, self.found, self.needed, self.remedy = thing, found, needed, remedy
        super().__init__(f"{thing}: {found}\n  {needed}\n  {remedy}")

    def __reduce__(self) -> tuple[type["DinoPathError"], tuple[str, str, str, str]]:
        """Keep all four parts when an error is sent from a worker process (the default keeps only the message)."""
        return type(self), (self.thing, self.found, self.needed, self.remedy)


def _shortened(line: str) -> str:
    if len(line) <= LONGEST_LINE:
        return line
    half = LONGEST_LINE // 2
    return f"{line[:half]} [... {len(line) - 2 * half:,} characters ...] {line[-half:]}"


class ConfigError(DinoPathError):
    """A setting is unknown, missing, mistyped or impossible."""


class SlideError(DinoPathError):
    """A slide cannot be opened, has no usable mpp, or cannot be read."""


class TileStoreError(DinoPathError):
    """A tile store (or image folder) is missing, damaged, empty, or made with another config."""


class CheckpointError(DinoPathError):
    """A checkpoint or model folder is missing, damaged, or does not fit."""


class DataError(DinoPathError):
    """Images or labels are missing, malformed, or would leak between splits."""


class DiskError(DinoPathError):
    """The disk is full, or a file or folder cannot be read, written or named."""


class NewerFormat(DinoPathError):
    """A file was written by a later version of dino_path."""


class LaunchError(DinoPathError):
    """The process group, device or cluster that was asked for cannot be obtained."""


class FolderInUse(DinoPathError):
    """Another process writes the folder."""


class NonFiniteLoss(DinoPathError):
    """Too many steps had a loss that is not finite."""


class StoppedBySignal(DinoPathError):
    """Training was asked to stop and has saved its state; `cli` exits with a special code."""


class CollapseDetected(DinoPathError):
    """The teacher's output collapsed and `monitor.on_collapse` is `stop`."""
