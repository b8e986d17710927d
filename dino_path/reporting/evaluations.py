"""What evaluations have written, read back for the report: tables, label fractions and few-shot episodes."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_path.config import COMPARISON_SPECS
from dino_path.errors import DataError
from dino_path.walk import Found, files_below

Plain = dict[str, Any]

METRICS = ("balanced_accuracy", "accuracy", "macro_f1", "auroc")
FILES = ("results.json", "fractions.json", "fewshot.json")


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
    """What one model's features tell about the slide; None where it is not known."""

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
    """

    model: str
    spec: str
    protocol: str
    kind: str
    scores: Mapping[str, Score]
    differences: Mapping[str, Score]
    recall: Mapping[str, Score]
    confusion: Sequence[Sequence[int]]

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
    data: Plain
    rows: Sequence[EvaluationRow]
    notes: Sequence[str]
    signatures: Sequence[Signature]

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
    """All evaluations below a folder; what cannot be read is added to `troubles`."""
    found = files_below(folder, lambda name: name in FILES) if folder.exists() else Found((), ())
    troubles += [str(one) for one in found.unreadable]
    for file in sorted(found.files, key=lambda file: (file.parent, FILES.index(file.name))):
        try:
            yield _read(file)
        except DataError as error:
            troubles.append(f"{file.relative_to(folder.parent)}: {error.found}")


def _read(file: Path) -> AnyEvaluation:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        name, notes = _name(record["data"]), tuple(record.get("notes", ()))
        origin = "/".join(file.resolve().parts[-3:-1])
        match file.name:
            case "fractions.json":
                rows = tuple(_fraction_row(row) for row in record["rows"])
                missing = {float(fraction): text for fraction, text in record["missing"].items()}
                return Fractions(name, origin, rows, record["baseline"], missing, notes)
            case "fewshot.json":
                return FewShot(name, origin, _episodes(record["rows"]), record["baseline"], notes)
        baseline = record["baseline"] if record["has_baseline"] else None
        table = tuple(_evaluation_row(row, baseline) for row in record["rows"])
        signatures = tuple(_signature(model, one) for model, one in record.get("slide_signature", {}).items())
        return Evaluation(name, origin, record["data"], table, notes, signatures)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            str(file),
            f"cannot be read as an evaluation ({type(error).__name__}: {error}).",
            f"A file that `dino-path evaluate` has written ({', '.join(FILES)}) is needed.",
            "Run the evaluation again.",
        ) from None


def _name(data: Plain) -> str:
    """Of the data, and the folds where they were cross-validated."""
    folds = data.get("cross_validation", {}).get("folds")
    return data["name"] if folds is None else f"{data['name']}, {folds}-fold cross-validation"


def _evaluation_row(row: Plain, baseline: str | None) -> EvaluationRow:
    metrics = row["metrics"]
    kind = "other" if str(row["spec"]).startswith(COMPARISON_SPECS) else "own"
    return EvaluationRow(
        model=row["model"],
        spec=str(row["spec"]),
        protocol=row["protocol"],
        kind="baseline" if row["model"] == baseline else kind,
        scores={name: score for name in METRICS if (score := _score(metrics.get(name))) is not None},
        differences=_differences(row),
        recall={name: s for name, entry in metrics.get("recall", {}).items() if (s := _score(entry)) is not None},
        confusion=metrics.get("confusion", []),
    )


def _fraction_row(row: Plain) -> FractionRow:
    score = _score(row["metrics"]["balanced_accuracy"])
    if score is None:
        raise ValueError(f"no balanced accuracy of {row['model']}")
    return FractionRow(row["model"], row["protocol"], float(row["fraction"]), score, _differences(row))


def _episodes(rows: Sequence[Plain]) -> dict[str, dict[int, Score]]:
    models: dict[str, dict[int, Score]] = {}
    for row in rows:
        numbers = [row[name]["balanced_accuracy"] for name in ("mean", "low", "high")]
        models.setdefault(row["model"], {})[int(row["shots"])] = Score(*numbers)
    return models


def _signature(model: str, record: Plain) -> Signature:
    return Signature(
        model, _score(record["identity"]), record["identity_chance"], _score(record["robustness"]),
        record["robustness_chance"], record["unit"],
    )  # fmt: skip


def _differences(row: Plain) -> dict[str, Score]:
    """In balanced accuracy, by the other model."""
    return {
        other: score
        for other, scores in row.get("differences", {}).items()
        if (score := _score(scores.get("balanced_accuracy"))) is not None
    }


def _score(entry: Mapping[str, float | None] | None) -> Score | None:
    if not entry or (value := entry.get("value")) is None or not math.isfinite(value):
        return None
    return Score(value, entry.get("low"), entry.get("high"))
