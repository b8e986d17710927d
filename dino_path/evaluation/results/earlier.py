"""Where results go, and what is there already: an evaluation replaces results only when it holds all that they do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dino_path.config import EvaluationConfig
from dino_path.errors import DataError
from dino_path.evaluation.labelled.datasets import LabelledSet
from dino_path.evaluation.labelled.division import divide
from dino_path.records.evaluation import AnyEvaluation, FewShotRecord, FractionsRecord, ResultsRecord, read_evaluation
from dino_path.records.feature_kinds import split_kind
from dino_path.run import RunFolder
from dino_path.settings import as_plain

Stem = Literal["results", "fractions", "fewshot"]
STEMS: tuple[Stem, ...] = ("results", "fractions", "fewshot")
END_TO_END = "end-to-end"
# They say where inputs lie, how fast it goes, or what is compared here by itself.
NOT_DECISIVE = ("batch_size", "regions", "protocols")


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation is going to find out.

    Attributes:
        stem: of its files.
        specs: of its models.
        protocols: that it runs; empty where the stem says it.
        fractions: of the labels; empty where all are used.
        has_baseline: whether the supervised network stands beside them.
    """

    stem: Stem
    specs: Sequence[str]
    protocols: Sequence[str]
    fractions: Sequence[float]
    has_baseline: bool


def results_folder(specs: Sequence[str], labelled: LabelledSet, what: str) -> Path:
    """Where results go when no folder is named: `eval/<data>-<what>` of the run of the first model, else here.

    Args:
        what: protocol, or `fractions`.
    """
    name = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in labelled.name)
    return folder_of_run(specs) / f"{name}-{what}"


def folder_of_run(specs: Sequence[str]) -> Path:
    """`eval` of the run of the first model that is of one, else here."""
    places = [Path(split_kind(spec)[1]) for spec in specs]
    runs = [RunFolder(place.parent) for place in places if place.is_dir()]
    return next((run.evaluation for run in runs if run.config_file.is_file()), Path("eval"))


def refuse_to_lose(out: Path, evaluation: Evaluation, labelled: LabelledSet, config: EvaluationConfig) -> None:
    """Check that no result in `out` would be lost.

    Raises:
        DataError: there are results of other data, settings, models or protocols, which the new ones do not hold.
    """
    labelled = divide(labelled, config).labelled  # results of a cross-validation are of the folds
    for stem in STEMS:
        file = out / f"{stem}.json"
        record = _read(file)
        if record is None:
            continue
        lost = _other_data(record, labelled)
        if stem == evaluation.stem:
            lost += [*_other_settings(record, config), *_left_out(record, evaluation)]
        if lost:
            raise DataError(
                str(file),
                f"holds results that would be lost: {'; '.join(lost)}.",
                "Results are replaced only by those of the same data and settings, and of the same models and more.",
                "Leave --out out or name another, or evaluate all of it together: features are kept, so it is quick.",
            )


def _read(file: Path) -> AnyEvaluation | None:
    """What is there; results that cannot be read must be known before others may replace them."""
    return read_evaluation(file) if file.exists() else None


def _other_data(record: AnyEvaluation, labelled: LabelledSet) -> list[str]:
    if record.data.split_digest == labelled.split_digest:
        return []
    return [f"they are of other images, labels or another split ({record.data.name}; {record.data.split_rule})"]


def _other_settings(record: AnyEvaluation, config: EvaluationConfig) -> list[str]:
    old, new = record.config, as_plain(config)
    return [
        f"evaluation.{key} was {old[key]}, now {new[key]}"
        for key in new
        if key in old and key not in NOT_DECISIVE and old[key] != new[key]
    ]


def _left_out(record: AnyEvaluation, evaluation: Evaluation) -> list[str]:
    specs = [model.spec for model in record.models.values()]
    rows = () if isinstance(record, FewShotRecord) else record.rows
    protocols = [row.protocol for row in rows if row.protocol != END_TO_END]
    fractions = [row.fraction for row in record.rows] if isinstance(record, FractionsRecord) else []
    left_out = [f"the model {spec}" for spec in _not_in(specs, evaluation.specs)]
    if evaluation.protocols:
        left_out += [f"the protocol {name}" for name in _not_in(protocols, evaluation.protocols)]
    left_out += [f"the fraction {fraction:g}" for fraction in _not_in(fractions, evaluation.fractions)]
    if isinstance(record, ResultsRecord) and record.has_baseline and not evaluation.has_baseline:
        left_out.append(f"the baseline {record.baseline}")
    return [f"{what} is left out" for what in left_out]


def _not_in(old: Iterable[Any], new: Iterable[Any]) -> list[Any]:
    return [one for one in dict.fromkeys(old) if one not in set(new)]
