"""The start of a run that continues another: `RUN/start.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dino_path.errors import DataError
from dino_path.records.format import Format, Record


class StartRecord(Record):
    """`started_from`: the runs before this one in words, the newest first; `starts`: the same as in the checkpoint."""

    started_from: str
    starts: tuple[dict[str, str | int | None], ...]


START = Format(
    "start of a run",
    StartRecord,
    DataError,
    "A file as `dino-path pretrain` writes it is needed.",
    "Start the run once more: it writes the file at its start.",
)


def write_start(file: Path, started_from: str, starts: Sequence[Mapping[str, str | int | None]]) -> None:
    """Write the start of a run; `starts`: oldest first."""
    START.write(file, StartRecord(started_from=started_from, starts=tuple(dict(start) for start in starts)))


def read_start(file: Path) -> StartRecord | None:
    """The start of a run; None if it does not continue another run.

    Raises:
        DataError: damaged. NewerFormat: a later dino_path wrote it.
    """
    return START.find(file)
