"""What `dino-path baseline` leaves: `result.json` of one training, and of the folds of a cross-validation together.

Version 3 says whether class probabilities are true (calibration).
"""

from __future__ import annotations

from typing import Any, Literal

from dino_path.errors import DataError
from dino_path.records.environment import EnvironmentRecord
from dino_path.records.format import Format, Record, Tree
from dino_path.records.labelled import DataRecord, MetricsRecord, without_calibration


class ValidationRecord(Record):
    """Which images chose the epoch."""

    rule: str
    num_fit_images: int
    num_validation_images: int


class EpochRecord(Record):
    """One epoch, counted from 1; the loss is the training's, with label smoothing."""

    epoch: int
    loss: float
    validation_accuracy: float
    validation_balanced_accuracy: float
    validation_log_loss: float


class BaselineRecord(Record):
    """One training. `config` is the section `baseline`; `experiment` changes when anything does that makes another."""

    format: Literal["dino_path supervised baseline"] = "dino_path supervised baseline"
    experiment: str
    metrics: MetricsRecord
    data: DataRecord
    validation: ValidationRecord
    config: dict[str, Any]
    seed: int
    input_px: int
    augmentation: str
    num_parameters: int
    best_epoch: int
    history: tuple[EpochRecord, ...]
    environment: EnvironmentRecord

    @property
    def is_undertrained(self) -> bool:
        """Did it end at its last allowed epoch, before validation had stopped gaining for `patience` epochs?"""
        num_epochs = len(self.history)
        stood_still = num_epochs - self.best_epoch >= self.config["patience"]
        return bool(num_epochs >= self.config["num_epochs"] and not stood_still)


class PooledBaselineRecord(Record):
    """The pooled results of all folds' networks."""

    format: Literal["dino_path supervised baseline, cross-validated"] = "dino_path supervised baseline, cross-validated"
    metrics: MetricsRecord
    data: DataRecord
    settings: dict[str, Any]
    notes: tuple[str, ...]
    environment: EnvironmentRecord


def counted_from_1(history: list[Tree], best_epoch: int) -> tuple[list[Tree], int]:
    """History and best epoch as they are; of a file that counts from 0, one more."""
    if not history or history[0]["epoch"] == 1:
        return history, best_epoch
    return [{**epoch, "epoch": epoch["epoch"] + 1} for epoch in history], best_epoch + 1


def _version_2_from_1(tree: Tree) -> Tree:
    """The name of the format without the version; and epochs count from 1, as some files of version 1 have them too."""
    if tree["format"] != "dino_path supervised baseline, 1":
        raise TypeError(f"format {tree['format']!r}")
    history, best_epoch = counted_from_1(tree["history"], tree["best_epoch"])
    return {**tree, "format": "dino_path supervised baseline", "history": history, "best_epoch": best_epoch}


def _pooled_2_from_1(tree: Tree) -> Tree:
    """The name of the format without the version."""
    return {**tree, "format": tree["format"].removesuffix(", 1")}


def _version_3_from_2(tree: Tree) -> Tree:
    return {**tree, "metrics": without_calibration(tree["metrics"])}


NEEDED = "The output folder of a finished `dino-path baseline` is needed."
REMEDY = "Check the path, or run `dino-path baseline --data SPEC --out DIR` (again)."
BASELINE = Format(
    "baseline", BaselineRecord, DataError, NEEDED, REMEDY, (_version_2_from_1, _version_3_from_2), is_shared=True
)
POOLED_BASELINE = Format(
    "cross-validated baseline",
    PooledBaselineRecord,
    DataError,
    NEEDED,
    REMEDY,
    (_pooled_2_from_1, _version_3_from_2),
    is_shared=True,
)
