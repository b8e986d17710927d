"""Results of evaluations, read for the report: tables, label fractions and few-shot episodes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

from dino_path.errors import DataError, NewerFormat
from dino_path.records import evaluation as records
from dino_path.records.evaluation import (
    FILES,
    FewShotRecord,
    FewShotRow,
    FractionsRecord,
    ResultRow,
    ResultsRecord,
    SignatureRecord,
    read_evaluation,
)
from dino_path.records.examples import ExamplesRecord, read_examples
from dino_path.records.feature_kinds import is_comparison
from dino_path.records.labelled import BinRecord, DataRecord, ScoreRecord
from dino_path.sharing import without_folders
from dino_path.walk import Found, files_below

Plain = dict[str, Any]

METRICS = ("balanced_accuracy", "accuracy", "macro_f1", "auroc")


@dataclass(frozen=True)
class Score:
    """A value and its 95 % confidence interval, None where there is none."""

    value: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Is zero outside the interval?"""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Signature:
    """How much one model's features reveal about the slide; None if unknown."""

    model: str
    identity: Score | None
    identity_chance: float | None
    robustness: Score | None
    robustness_chance: float | None
    unit: str


@dataclass(frozen=True)
class EvaluationRow:
    """One model under one protocol.

    Attributes:
        spec: what the evaluation was given: a model folder, `untrained:FOLDER`, `mean-colour`, ...
        differences: other model -> this one minus it, in balanced accuracy.
        kind: `own` for models that dino_path trained, `baseline` for the supervised one, `other` for comparisons.
        reliability: points of the curve of its class probabilities; none in files of earlier versions.
    """

    model: str
    spec: str
    protocol: str
    kind: str
    scores: Mapping[str, Score]
    differences: Mapping[str, Score]
    recall: Mapping[str, Score]
    confusion: Sequence[Sequence[int]]
    reliability: Sequence[BinRecord] = ()

    def minus_any_of(self, others: Collection[str]) -> Score | None:
        """The difference to the one of them that the row was compared with."""
        return next((score for other, score in self.differences.items() if other in others), None)


@dataclass(frozen=True)
class Evaluation:
    """One `results.json`: models side by side.

    Attributes:
        origin: the folder it lies in, with the folder above.
    """

    name: str
    origin: str
    data: DataRecord
    rows: Sequence[EvaluationRow]
    notes: Sequence[str]
    signatures: Sequence[Signature]
    examples: Sequence[ExamplesRecord] = ()
    """Tiles that illustrate the results: one set, or several if evaluations of the same data are combined."""

    @property
    def chance(self) -> float:
        """The balanced accuracy of guessing."""
        return 1 / len(self.data.classes)

    @property
    def baselines(self) -> frozenset[str]:
        """Names of supervised networks."""
        return frozenset(row.model for row in self.rows if row.kind == "baseline")


@dataclass(frozen=True)
class FractionRow:
    """One model under one protocol at one fraction of the labels, in balanced accuracy.

    Attributes:
        differences: other model -> this one minus it.
    """

    model: str
    protocol: str
    fraction: float
    score: Score
    differences: Mapping[str, Score]


@dataclass(frozen=True)
class Fractions:
    """One `fractions.json`.

    Attributes:
        origin: as of `Evaluation`.
        baseline: name of the supervised network.
        missing: fraction -> what to run, where the supervised network is missing.
    """

    name: str
    origin: str
    rows: Sequence[FractionRow]
    baseline: str
    missing: Mapping[float, str]
    notes: Sequence[str]
    num_classes: int


@dataclass(frozen=True)
class FewShot:
    """One `fewshot.json`: model -> shots -> mean balanced accuracy and the range of 95 % of the episodes."""

    name: str
    origin: str
    models: Mapping[str, Mapping[int, Score]]
    baseline: str
    notes: Sequence[str]


AnyEvaluation = Evaluation | Fractions | FewShot


def read_evaluations(path: Path) -> list[AnyEvaluation]:
    """The evaluations in a folder, or the one in a file.

    Raises:
        DataError: missing, damaged, or not written by `dino-path evaluate`.
    """
    if not path.is_dir():
        return [_read(path)]
    files = [path / name for name in FILES if (path / name).is_file()]
    return [_read(file) for file in files or [path / FILES[0]]]


def find_evaluations(folder: Path, troubles: list[str]) -> Iterator[AnyEvaluation]:
    """All evaluations below a folder; unreadable files are added to `troubles`."""
    found = files_below(folder, lambda name: name in FILES) if folder.exists() else Found((), ())
    troubles += [str(one) for one in found.unreadable]
    for file in sorted(found.files, key=lambda file: (file.parent, FILES.index(file.name))):
        try:
            yield _read(file)
        except (DataError, NewerFormat) as error:
            troubles.append(f"{file.relative_to(folder.parent)}: {error.found}")


def _read(file: Path) -> AnyEvaluation:
    record = read_evaluation(file)
    name, notes = record.data.title, without_folders(record.notes)
    origin = "/".join(file.resolve().parts[-3:-1])
    match record:
        case FractionsRecord():
            rows = tuple(_fraction_row(row) for row in record.rows)
            missing = {float(fraction): text for fraction, text in record.missing.items()}
            return Fractions(name, origin, rows, record.baseline, missing, notes, len(record.data.classes))
        case FewShotRecord():
            return FewShot(name, origin, _episodes(record.rows), record.baseline, notes)
        case ResultsRecord():
            baseline = record.baseline if record.has_baseline else None
            table = tuple(_evaluation_row(row, baseline) for row in record.rows)
            signatures = tuple(_signature(model, one) for model, one in record.slide_signature.items())
            examples = read_examples(file.parent, record.data.split_digest)
            return Evaluation(
                name, origin, record.data, table, notes, signatures,
                examples=() if examples is None else (examples,),
            )  # fmt: skip
        case _ as never:
            assert_never(never)


def _evaluation_row(row: ResultRow, baseline: str | None) -> EvaluationRow:
    metrics = row.metrics
    kind = "other" if is_comparison(row.spec) else "own"
    return EvaluationRow(
        model=row.model,
        spec=row.spec,
        protocol=row.protocol,
        kind="baseline" if row.model == baseline else kind,
        scores={name: score for name in METRICS if (score := _score(getattr(metrics, name))) is not None},
        differences=_differences(row),
        recall={name: score for name, entry in metrics.recall.items() if (score := _score(entry)) is not None},
        confusion=metrics.confusion,
        reliability=metrics.reliability,
    )


def _fraction_row(row: records.FractionRow) -> FractionRow:
    score = _score(row.metrics["balanced_accuracy"])
    assert score is not None
    return FractionRow(row.model, row.protocol, row.fraction, score, _differences(row))


def _episodes(rows: Sequence[FewShotRow]) -> dict[str, dict[int, Score]]:
    models: dict[str, dict[int, Score]] = {}
    for row in rows:
        numbers = [of_metric["balanced_accuracy"] for of_metric in (row.mean, row.low, row.high)]
        models.setdefault(row.model, {})[row.shots] = Score(*numbers)
    return models


def _signature(model: str, record: SignatureRecord) -> Signature:
    return Signature(
        model, _score(record.identity), record.identity_chance, _score(record.robustness), record.robustness_chance,
        record.unit,
    )  # fmt: skip


def _differences(row: ResultRow | records.FractionRow) -> dict[str, Score]:
    """In balanced accuracy, by the other model."""
    return {
        other: score
        for other, scores in row.differences.items()
        if (score := _score(scores.get("balanced_accuracy"))) is not None
    }


def _score(entry: ScoreRecord | None) -> Score | None:
    if entry is None or entry.value is None or not math.isfinite(entry.value):
        return None
    return Score(entry.value, entry.low, entry.high)
