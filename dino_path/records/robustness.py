"""What `dino-path evaluate robustness` leaves: `robustness.json`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dino_path.errors import DataError
from dino_path.records.evaluation import NEEDED, REMEDY, Differences, EvaluationRecord
from dino_path.records.format import Format, Record
from dino_path.records.labelled import ScoreRecord


class MakerRow(Record):
    """How much one model's features encode the centre (or scanner).

    `figures` are by name: robustness_index, croma, croma_worst_tenth, clustering_score, told_within_class,
    accuracy_known, accuracy_new, drop. One that the data do not allow is missing, and the notes say why.
    """

    model: str
    figures: dict[str, ScoreRecord]
    k: int
    index_by_k: dict[str, float]
    support: float
    num_without_croma: int
    rand_of_class: float | None = None
    rand_of_maker: float | None = None
    accuracy_by_maker: dict[str, float] = Field({})
    differences: Differences = Field({})


class MakersRecord(Record):
    """All models on one question: centres or scanners. `counts` is by maker and class."""

    kind: Literal["centre", "scanner"]
    counts: dict[str, dict[str, int]]
    unit: str
    num_units: dict[str, int]
    told_by_chance: float | None
    rows: tuple[MakerRow, ...]


class ShiftRow(Record):
    """One model under one shift; `level` 1 to 3, `strength` in the unit that docs/robustness.md gives."""

    model: str
    shift: str
    level: int
    strength: float
    balanced_accuracy: ScoreRecord
    drop: ScoreRecord
    cosine: ScoreRecord
    found_again: ScoreRecord


class ShiftSummaryRow(Record):
    """One model at one level, balanced accuracy averaged over the shifts; level 0 is as the images are."""

    model: str
    level: int
    balanced_accuracy: ScoreRecord
    drop: ScoreRecord | None
    differences: Differences = Field({})


class ShiftsRecord(Record):
    """All models under all shifts. `pixel_change` is the mean change of a grey level, by shift, of levels 1 to 3."""

    num_images: int
    interval: str
    pixel_change: dict[str, tuple[float, ...]]
    summary: tuple[ShiftSummaryRow, ...]
    rows: tuple[ShiftRow, ...]


class RobustnessRecord(EvaluationRecord):
    """`robustness.json`; `shifts` is None if they were not requested."""

    format: Literal["dino_path robustness"] = "dino_path robustness"
    makers: tuple[MakersRecord, ...]
    shifts: ShiftsRecord | None


ROBUSTNESS = Format("robustness", RobustnessRecord, DataError, NEEDED, REMEDY, is_shared=True)
