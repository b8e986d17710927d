"""What `dino-path evaluate slides` leaves: `slides.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dino_path.errors import DataError
from dino_path.records.environment import EnvironmentRecord
from dino_path.records.evaluation import NEEDED, REMEDY, Differences
from dino_path.records.format import Format, Record
from dino_path.records.labelled import ScoreRecord

TILE_COUNT = "number of tiles"


class CohortRecord(Record):
    """The cases, as needed to understand and repeat the evaluation.

    Attributes:
        unit: what has one label: slide or patient.
        num_by_class: patients (else slides) with a case of each class; of survival, `censored` and `event`.
        is_ordered: whether the classes have an order, from low to high.
        left_out: slide of the table -> why it takes no part.
        digest: of cases, patients, slides and labels; folds_digest of who is tested by whom.
    """

    name: str
    task: Literal["label", "survival"]
    unit: Literal["slide", "patient"]
    classes: tuple[str, ...]
    is_ordered: bool
    num_cases: int
    num_patients: int | None
    num_slides: int
    num_by_class: dict[str, int]
    left_out: dict[str, str]
    folds: str
    num_folds: int
    num_repeats: int
    digest: str
    folds_digest: str


class SourceRecord(Record):
    """One folder of features; encoder and digest as its files say them. `is_null`: an untrained network, or colour."""

    folder: str
    encoder: str | None
    encoder_digest: str | None
    num_features: int
    num_tiles: int
    is_null: bool


class SlideRow(Record):
    """One extractor and aggregator; `confusion` counts every repeat, with true classes as rows.

    Attributes:
        by_repeat: metric -> value of each repeat.
        by_centre: centre -> balanced accuracy and number of cases.
        differences: other extractor -> metric -> this one minus the other, by the same aggregator.
    """

    source: str
    aggregator: Literal["mean", "abmil", "cox"]
    metrics: dict[str, ScoreRecord]
    recall: dict[str, ScoreRecord] = Field({})
    confusion: tuple[tuple[int, ...], ...] | None = None
    by_repeat: dict[str, tuple[float | None, ...]]
    by_centre: dict[str, dict[str, float | None]] = Field({})
    interval: str
    differences: Differences = Field({})


class MapRecord(Record):
    """A map of attention: its files, below the folder of the results.

    Attributes:
        largest: attention of the tile that gets most, as a multiple of even attention.
        half: the smallest share of the tiles that together get half of the attention.
    """

    source: str
    slide: str
    geojson: str
    picture: str
    largest: float
    half: float


class SlidesRecord(Record):
    """`slides.json`; `sources` are by the name that rows use, `config` is the section `cohort`.

    Rows of TILE_COUNT have no source: they use only the amount of tissue.
    """

    format: Literal["dino_path slide evaluation"] = "dino_path slide evaluation"
    data: CohortRecord
    config: dict[str, Any]
    sources: dict[str, SourceRecord]
    rows: tuple[SlideRow, ...]
    maps: tuple[MapRecord, ...] = ()
    notes: tuple[str, ...] = ()
    environment: EnvironmentRecord


SLIDES_EVALUATION = Format("slide evaluation", SlidesRecord, DataError, NEEDED, REMEDY, is_shared=True)


def read_slides_record(file: Path) -> SlidesRecord:
    """Read the record of a slide-level evaluation.

    Raises:
        DataError: missing, damaged, or not written by `dino-path evaluate slides`.
        NewerFormat: a later dino_path wrote it.
    """
    return SLIDES_EVALUATION.read(file)


def write_slides_record(file: Path, record: SlidesRecord) -> None:
    """Write `slides.json`."""
    SLIDES_EVALUATION.write(file, record)
