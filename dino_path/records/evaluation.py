"""What `dino-path evaluate` leaves: `results.json`, `fractions.json` and `fewshot.json`.

Version 4 of results says whether class probabilities are true (calibration).
Version 3 says which kind of features each model gave.
Version 2 has differences as mine minus the other, in the row of mine; version 1 had them in the row of whichever model
was not the first, as that one minus the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dino_path.config import COMPARISON_SPECS
from dino_path.errors import DataError
from dino_path.records.environment import EnvironmentRecord
from dino_path.records.feature_kinds import FeatureKind
from dino_path.records.format import Format, Lift, Record, Tree
from dino_path.records.labelled import DataRecord, MetricsRecord, ScoreRecord, without_calibration

Differences = dict[str, dict[str, ScoreRecord]]  # other model -> metric -> this one minus the other


class ModelRecord(Record):
    """One model: how it was named on the command line, and what it turned out to be.

    `input_px` is None for colour features, which take images of any size. `features` is the kind of features; None: as
    the network pools them, and in files of earlier versions.
    """

    spec: str
    digest: str
    num_features: int
    input_px: int | None
    mpp: float | None
    features: FeatureKind | None = None


class EvaluationRecord(Record):
    """Fields of all evaluations. `models` are keyed by the names used in rows; `config` is the section `evaluation`."""

    data: DataRecord
    config: dict[str, Any]
    models: dict[str, ModelRecord]
    baseline: str
    notes: tuple[str, ...] = ()
    environment: EnvironmentRecord


class ResultRow(Record):
    """One model under one protocol."""

    model: str
    spec: str
    protocol: str
    metrics: MetricsRecord
    settings: dict[str, Any]
    differences: Differences = Field({})


class SignatureRecord(Record):
    """How much one model's features reveal about the slide; None if unknown."""

    identity: ScoreRecord | None
    identity_chance: float | None
    robustness: ScoreRecord
    robustness_chance: float | None
    robustness_ratio: float | None
    unit: str
    num_images: int
    neighbours: int


class ResultsRecord(EvaluationRecord):
    """`results.json`; `baseline` is the name of the supervised network, or says that it is missing."""

    format: Literal["dino_path evaluation"] = "dino_path evaluation"
    has_baseline: bool
    rows: tuple[ResultRow, ...]
    slide_signature: dict[str, SignatureRecord] = Field({})


class FractionRow(Record):
    """One model under one protocol at one fraction of the labels; `metrics` are means over the draws of the labels."""

    model: str
    protocol: str
    fraction: float
    num_draws: int
    metrics: dict[str, ScoreRecord]
    differences: Differences = Field({})


class FractionsRecord(EvaluationRecord):
    """`fractions.json`; by fraction, `labelled_images` of each draw by class, and what to run for what is `missing`."""

    format: Literal["dino_path label fractions"] = "dino_path label fractions"
    labelled_images: dict[str, tuple[dict[str, int], ...]]
    missing: dict[str, str]
    rows: tuple[FractionRow, ...]


class FewShotRow(Record):
    """Mean over episodes, and the range of 95 % of them, by metric."""

    model: str
    shots: int
    mean: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]


class FewShotRecord(EvaluationRecord):
    """`fewshot.json`."""

    format: Literal["dino_path few-shot evaluation"] = "dino_path few-shot evaluation"
    rows: tuple[FewShotRow, ...]


AnyEvaluation = ResultsRecord | FractionsRecord | FewShotRecord


def version_2_from_1(kind: str) -> Lift:
    """The lift of results: their format's name without the version, and differences as mine minus the other."""

    def lift(tree: Tree) -> Tree:
        if tree["format"] != f"{kind}, 1":
            raise TypeError(f"format {tree['format']!r}")
        return {**tree, "format": kind, "rows": _differences_of_mine(tree["rows"], tree["models"])}

    return lift


def _version_3_from_2(tree: Tree) -> Tree:
    models = {name: {**model, "features": None} for name, model in tree["models"].items()}
    return {**tree, "models": models}


def _results_4_from_3(tree: Tree) -> Tree:
    return {**tree, "rows": [{**row, "metrics": without_calibration(row["metrics"])} for row in tree["rows"]]}


def _differences_of_mine(rows: Sequence[Tree], models: dict[str, Tree]) -> list[Tree]:
    order = list(models)
    lifted = [{**row, "differences": dict(row.get("differences", {}))} if "metrics" in row else row for row in rows]
    for row in lifted:
        for other in list(row.get("differences", ())):
            mine = next((one for one in lifted if one["model"] == other and _are_compared(one, row)), None)
            if mine is None or not _is_turned(row["model"], other, order, models):
                continue
            scores = row["differences"].pop(other)
            mine["differences"][row["model"]] = {
                metric: ScoreRecord.model_validate(score).negated().model_dump() for metric, score in scores.items()
            }
    return lifted


def _are_compared(one: Tree, other: Tree) -> bool:
    return all(one.get(key) == other.get(key) for key in ("protocol", "fraction"))


def _is_turned(model: str, other: str, order: Sequence[str], models: dict[str, Tree]) -> bool:
    """Whether a difference is the wrong way round: of a later model to an earlier one, but for mine to a control."""
    if model not in models or other not in models or order.index(other) > order.index(model):
        return False
    is_control = {name: str(models[name]["spec"]).startswith(COMPARISON_SPECS) for name in (model, other)}
    return is_control[model] or not is_control[other]


NEEDED = "A file that `dino-path evaluate` has written is needed."
REMEDY = "Run the evaluation again."
RESULTS = Format(
    "results",
    ResultsRecord,
    DataError,
    NEEDED,
    REMEDY,
    (version_2_from_1("dino_path evaluation"), _version_3_from_2, _results_4_from_3),
    is_shared=True,
)
FRACTIONS = Format(
    "label fractions",
    FractionsRecord,
    DataError,
    NEEDED,
    REMEDY,
    (version_2_from_1("dino_path label fractions"), _version_3_from_2),
    is_shared=True,
)
FEWSHOT = Format(
    "few-shot episodes",
    FewShotRecord,
    DataError,
    NEEDED,
    REMEDY,
    (version_2_from_1("dino_path few-shot evaluation"), _version_3_from_2),
    is_shared=True,
)
FILES = ("results.json", "fractions.json", "fewshot.json")


def read_evaluation(file: Path) -> AnyEvaluation:
    """Read the record of an evaluation; the file's name says which kind.

    Raises:
        DataError: missing, damaged, or not written by `dino-path evaluate`.
        NewerFormat: a later dino_path wrote it.
    """
    match file.name:
        case "fractions.json":
            return FRACTIONS.read(file)
        case "fewshot.json":
            return FEWSHOT.read(file)
    return RESULTS.read(file)


def write_evaluation(folder: Path, record: AnyEvaluation) -> None:
    """Write the one of FILES that a record belongs in."""
    match record:
        case ResultsRecord():
            RESULTS.write(folder / "results.json", record)
        case FractionsRecord():
            FRACTIONS.write(folder / "fractions.json", record)
        case FewShotRecord():
            FEWSHOT.write(folder / "fewshot.json", record)
