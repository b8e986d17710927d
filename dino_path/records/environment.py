"""Versions, machine and command with which something was made: `RUN/environment.json`, and part of results."""

from __future__ import annotations

import platform
from pathlib import Path

from dino_path.errors import DataError
from dino_path.records.format import Format, Record
from dino_path.run import environment_record


class EnvironmentRecord(Record):
    """The facts needed to repeat it.

    Attributes:
        command: empty in files that are meant to be shared.
        git_commit: None for an installed package.
    """

    command: tuple[str, ...]
    python: str
    platform: str
    num_cpus: int | None
    git_commit: str | None
    versions: dict[str, str | None]


ENVIRONMENT = Format(
    "environment",
    EnvironmentRecord,
    DataError,
    "A file as `dino-path pretrain` writes it is needed.",
    "Start the run once more: it writes the file at its start.",
)


def present_environment() -> EnvironmentRecord:
    """Of this process."""
    return EnvironmentRecord.model_validate(environment_record())


def shared_environment() -> EnvironmentRecord:
    """Of this process, as files hold it that are meant to be shared: without the command and the kernel."""
    return present_environment().model_copy(
        update={"command": (), "platform": f"{platform.system()} {platform.machine()}"}
    )


def write_environment(file: Path) -> None:
    """Write in which environment this process runs."""
    ENVIRONMENT.write(file, present_environment())


def read_environment(file: Path) -> EnvironmentRecord | None:
    """The environment that a run was started in; None where the file is missing.

    Raises:
        DataError: damaged. NewerFormat: a later dino_path wrote it.
    """
    return ENVIRONMENT.find(file)
