"""The description of labelled images in results, and numbers with intervals."""

from __future__ import annotations

from pydantic import Field

from dino_path.records.format import Record, Tree


class ScoreRecord(Record):
    """A value with its 95 % confidence interval; None where there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def negated(self) -> ScoreRecord:
        """Of a difference: the same, taken the other way round."""
        turned = [None if end is None else 0.0 - end for end in (self.value, self.high, self.low)]
        return ScoreRecord(value=turned[0], low=turned[1], high=turned[2])


class FoldRecord(Record):
    """One split of a cross-validation; `num_images` is by part and class."""

    rule: str
    split_digest: str
    num_images: dict[str, dict[str, int]]
    num_test_groups: int


class CrossValidationRecord(Record):
    """The folds, repeat after repeat."""

    folds: int
    repeats: int
    splits: tuple[FoldRecord, ...]


class DataRecord(Record):
    """A labelled set and its split, as needed to repeat it. `num_images` is by part and class."""

    name: str
    classes: tuple[str, ...]
    num_images: dict[str, dict[str, int]]
    grouped_by: str | None
    num_groups: dict[str, int] | None
    split_rule: str
    notes: tuple[str, ...] = ()
    mpp: float | None = None
    content_digest: str
    split_digest: str
    cross_validation: CrossValidationRecord | None = None

    @property
    def title(self) -> str:
        """The name, and the folds where they were cross-validated."""
        folds = self.cross_validation
        return self.name if folds is None else f"{self.name}, {folds.folds}-fold cross-validation"


class BinRecord(Record):
    """One point of a reliability curve: images whose predicted class has a probability above `low` and up to `high`.

    `confidence` is their mean probability, `accuracy` the share of right answers; None where there is no image.
    """

    low: float
    high: float
    num_images: int
    confidence: float | None
    accuracy: float | None


class MetricsRecord(Record):
    """All numbers of one set of predictions; `confusion` has true classes as rows.

    `ece`, `brier`, `ece_if_calibrated` and `reliability` say whether the class probabilities are true
    (`dino_path/evaluation/measures/calibration.py`); None and empty in files of earlier versions.
    """

    accuracy: ScoreRecord
    balanced_accuracy: ScoreRecord
    macro_f1: ScoreRecord
    kappa: ScoreRecord
    auroc: ScoreRecord
    ece: ScoreRecord | None = None
    brier: ScoreRecord | None = None
    ece_if_calibrated: float | None = None
    reliability: tuple[BinRecord, ...] = ()
    recall: dict[str, ScoreRecord]
    by_class: dict[str, dict[str, ScoreRecord]] = Field({})
    confusion: tuple[tuple[int, ...], ...]
    num_test_images: int
    interval: str


def without_calibration(metrics: Tree) -> Tree:
    """Metrics of a version that did not say whether probabilities are true, as the present one has them."""
    return {**metrics, "ece": None, "brier": None, "ece_if_calibrated": None, "reliability": ()}
