"""What `dino-path evaluate segmentation` leaves: `segmentation.json`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from dino_path.errors import DataError
from dino_path.records.environment import EnvironmentRecord
from dino_path.records.format import Format, Record
from dino_path.records.labelled import DataRecord, ScoreRecord

Means = dict[str, dict[str, ScoreRecord]]  # average (image, patient, pooled) -> measure (dice, iou) -> score


class MasksRecord(Record):
    """The classes of pixels: those in the means are `counted`; `share` of the known pixels of all images."""

    classes: tuple[str, ...]
    counted: tuple[str, ...]
    share: dict[str, float]
    digest: str


class OverlapRecord(Record):
    """Dice and IoU: means over the counted classes, and each class."""

    mean: Means
    by_class: dict[str, dict[str, dict[str, ScoreRecord]]]
    interval: str


class PatchModelRecord(Record):
    """One model: how it was named on the command line, and what it turned out to be.

    `num_features` is of one patch. Windows and patches are in px of the image after `evaluation.segmentation_scale`.
    `best` is what the true class shares of its patches would give.
    """

    spec: str
    digest: str
    num_features: int
    window_px: int
    patch_px: int
    mpp: float | None
    best: OverlapRecord
    seconds: float


class SegmentationRow(Record):
    """One model under one protocol; differences are this one's means minus the other's, by the other's name."""

    model: str
    protocol: Literal["linear", "knn"]
    overlap: OverlapRecord
    settings: dict[str, Any]
    differences: dict[str, Means] = Field({})


class SegmentationRecord(Record):
    """`segmentation.json`. The classes of `data` are the labels by which a drawn split is stratified."""

    format: Literal["dino_path segmentation"] = "dino_path segmentation"
    data: DataRecord
    masks: MasksRecord
    config: dict[str, Any]
    models: dict[str, PatchModelRecord]
    rows: tuple[SegmentationRow, ...]
    notes: tuple[str, ...] = ()
    environment: EnvironmentRecord


SEGMENTATION = Format(
    "segmentation",
    SegmentationRecord,
    DataError,
    "A file that `dino-path evaluate segmentation` has written is needed.",
    "Run the evaluation again.",
    is_shared=True,
)
