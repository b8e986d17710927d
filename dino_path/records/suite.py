"""What `dino-path evaluate suite` leaves beside the folders of its sets: `suite.json`.

Every score is the set's primary metric; larger is better.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dino_path.errors import DataError
from dino_path.records.environment import EnvironmentRecord
from dino_path.records.format import Format, Record
from dino_path.records.labelled import ScoreRecord

Role = Literal["own", "null", "other", "supervised"]


class SuiteModelRecord(Record):
    """One model. `null`: an untrained network or colours; `other`: frozen weights of timm; else `own` or `supervised`.

    Attributes:
        spec, digest: as given on the command line, and of the weights; None for the supervised networks, of which there
            is one for each set.
        mean, rank: over all sets; None where it is not known on all of them.
    """

    role: Role
    spec: str | None
    digest: str | None
    mean: ScoreRecord | None
    rank: ScoreRecord | None


class SuiteSetRecord(Record):
    """One set; its folder of that name holds all results.

    Attributes:
        protocols: that were run; `protocol` and `metric` are those of the scores.
        scores: by model; the supervised network is left out where it is missing.
        differences: mine minus the other, by model and other model, paired.
    """

    name: str
    data: str
    about: str
    protocols: tuple[str, ...]
    protocol: str
    metric: str
    interval: str
    split_rule: str
    num_tested: int
    supervised_missing: str | None
    scores: dict[str, ScoreRecord]
    differences: dict[str, dict[str, ScoreRecord]]


class SuiteDifferenceRecord(Record):
    """The mean over all sets of one model minus another's, and on how many sets its interval is above or below 0."""

    model: str
    other: str
    mean: ScoreRecord
    num_above: int
    num_below: int


class SuiteRecord(Record):
    """`suite.json`; `left_out` are sets that were not evaluated, with the reason."""

    format: Literal["dino_path suite"] = "dino_path suite"
    title: str
    sets: tuple[SuiteSetRecord, ...]
    left_out: dict[str, str] = Field({})
    models: dict[str, SuiteModelRecord]
    differences: tuple[SuiteDifferenceRecord, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    config: dict[str, Any]
    environment: EnvironmentRecord


FILE = "suite.json"
SUITE = Format(
    "suite",
    SuiteRecord,
    DataError,
    "A folder that `dino-path evaluate suite` has written is needed.",
    "Check the path, or run the suite again.",
    is_shared=True,
)


def verdict(difference: ScoreRecord) -> Literal["better", "worse", "open"]:
    """The result of a difference: its interval lies above 0, below 0, or contains 0 (or there is none)."""
    if difference.low is not None and difference.low > 0:
        return "better"
    return "worse" if difference.high is not None and difference.high < 0 else "open"


def lacking(one: SuiteSetRecord) -> str:
    """The text for the supervised network if a set has no number of it: it is missing, or not possible."""
    return "none" if one.supervised_missing is None else "missing"


def num_open(record: SuiteRecord, difference: SuiteDifferenceRecord) -> int:
    """On how many sets, of those that both models are on, the interval of the difference holds 0."""
    num_sets = sum(difference.other in one.differences.get(difference.model, {}) for one in record.sets)
    return num_sets - difference.num_above - difference.num_below


def read_suite(folder: Path) -> SuiteRecord:
    """Read the record that a suite has written into a folder.

    Raises:
        DataError: missing, damaged, or not written by `dino-path evaluate suite`.
        NewerFormat: a later dino_path wrote it.
    """
    return SUITE.read(folder / FILE)


def write_suite(folder: Path, record: SuiteRecord) -> None:
    """Write `suite.json`."""
    SUITE.write(folder / FILE, record)
