"""What `dino-path evaluate retrieval` leaves: `retrieval.json`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from dino_path.errors import DataError
from dino_path.records.environment import EnvironmentRecord
from dino_path.records.evaluation import NEEDED, REMEDY, Differences, ModelRecord
from dino_path.records.format import Format, Record
from dino_path.records.labelled import DataRecord, ScoreRecord


class RetrievalRow(Record):
    """One model; scores are by measure: `mMV@1` and so on, `mAP@5` and so on, and `mAP` where the search is exact.

    `balanced` is the mean over classes that count the same, `overall` that over all queries, and `by_class` that over
    the queries of each class. `differences` are of `balanced`. `recall` is the share of the true neighbours that an
    approximate index finds; None: the search is exact. `units_among_nearest` is from how many patients (slides) the ten
    nearest are, on average.
    """

    model: str
    spec: str
    balanced: dict[str, ScoreRecord]
    overall: dict[str, ScoreRecord]
    by_class: dict[str, dict[str, ScoreRecord]]
    differences: Differences = Field({})
    recall: float | None
    units_among_nearest: float


class RetrievalRecord(Record):
    """`retrieval.json`: each query searches among all images of other `units` ("patients", "slides" or "images").

    `num_queries` and `left_out` are by class: images that ask, and test images whose class no other unit has.
    `chance` is the mean over classes of the share that a query's class has of what it searches in. `sheet` is the file
    of the picture of neighbours, beside this one.
    """

    format: Literal["dino_path retrieval"] = "dino_path retrieval"
    data: DataRecord
    config: dict[str, Any]
    models: dict[str, ModelRecord]
    units: str
    num_queries: dict[str, int]
    num_query_units: int
    left_out: dict[str, int]
    num_images: int
    chance: float
    rows: tuple[RetrievalRow, ...]
    sheet: str
    notes: tuple[str, ...] = ()
    environment: EnvironmentRecord


RETRIEVAL = Format("retrieval", RetrievalRecord, DataError, NEEDED, REMEDY, is_shared=True)
