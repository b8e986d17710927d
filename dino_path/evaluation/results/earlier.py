"""The folder of results, and existing results in it: an evaluation replaces results only if it includes all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dino_path.config import EvaluationConfig
from dino_path.errors import DataError
from dino_path.evaluation.labelled.datasets import LabelledSet
from dino_path.evaluation.labelled.division import divide
from dino_path.lock import only_writer
from dino_path.records.evaluation import (
    FEWSHOT,
    FRACTIONS,
    RESULTS,
    AnyEvaluation,
    EvaluationRecord,
    FractionsRecord,
    ResultsRecord,
)
from dino_path.records.feature_kinds import split_kind
from dino_path.records.format import Format
from dino_path.records.retrieval import RETRIEVAL, RetrievalRecord
from dino_path.records.robustness import ROBUSTNESS, RobustnessRecord
from dino_path.records.segmentation import SEGMENTATION
from dino_path.run import RunFolder
from dino_path.settings import as_plain
from dino_path.sharing import shared_name, without_folders

TableStem = Literal["results", "fractions", "fewshot"]
Stem = Literal[TableStem, "retrieval", "robustness"]
AnyRecord = AnyEvaluation | RetrievalRecord | RobustnessRecord
FORMATS: dict[Stem, Format[Any]] = {
    "results": RESULTS,
    "fractions": FRACTIONS,
    "fewshot": FEWSHOT,
    "retrieval": RETRIEVAL,
    "robustness": ROBUSTNESS,
}
END_TO_END = "end-to-end"
# They say where inputs lie, how fast it goes, or what is compared here by itself.
NOT_DECISIVE = ("batch_size", "regions", "protocols")


@dataclass(frozen=True)
class Evaluation:
    """A planned evaluation.

    Attributes:
        stem: of its files.
        specs: of its models.
        protocols: that it runs; empty where the stem says it.
        fractions: of the labels; empty where all are used.
        has_baseline: whether the supervised network stands beside them.
        has_shifts: whether images are looked at under shifts.
    """

    stem: Stem
    specs: Sequence[str]
    protocols: Sequence[str]
    fractions: Sequence[float]
    has_baseline: bool
    has_shifts: bool = False


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
    for stem, file_format in FORMATS.items():
        file = out / f"{stem}.json"
        if not file.exists():
            continue
        record = file_format.read(file)  # what cannot be read must be known before something else replaces it
        lost = _other_data(record, labelled)
        if stem == evaluation.stem:
            lost += [*_other_settings(record.config, config), *_left_out(record, evaluation)]
        _refuse_lost(file, lost)


@contextmanager
def only_evaluation(
    out: Path, evaluation: Evaluation, labelled: LabelledSet, config: EvaluationConfig
) -> Iterator[None]:
    """Inside, no other process writes results to `out`, and none has since `refuse_to_lose` was asked first.

    Raises:
        FolderInUse: another does. DataError: as `refuse_to_lose`.
    """
    with only_writer(out):
        refuse_to_lose(out, evaluation, labelled, config)
        yield


def refuse_to_lose_masks(
    out: Path, specs: Sequence[str], labelled: LabelledSet, masks_digest: str, config: EvaluationConfig
) -> None:
    """Check that no segmentation in `out` would be lost.

    Args:
        labelled: the images that are tested, as they are split.
        masks_digest: of the masks and their classes.

    Raises:
        DataError: there is one of other images, masks, settings or models, which the new one does not hold.
    """
    file = out / "segmentation.json"
    if not file.exists():
        return
    record = SEGMENTATION.read(file)
    is_other = (record.data.split_digest, record.masks.digest) != (labelled.split_digest, masks_digest)
    lost = [f"they belong to other images, masks or another split ({record.data.name})"] if is_other else []
    left_out = _not_in(_shared(model.spec for model in record.models.values()), _shared(specs))
    _refuse_lost(
        file, [*lost, *_other_settings(record.config, config), *(f"the model {spec} is left out" for spec in left_out)]
    )


def _refuse_lost(file: Path, lost: Sequence[str]) -> None:
    if lost:
        raise DataError(
            str(file),
            f"holds results that would be lost: {'; '.join(lost)}.",
            "Results are replaced only by results of the same data and settings with at least the same models.",
            "Leave --out out or give another, or evaluate everything together: this is quick, because features are"
            " cached.",
        )


def _other_data(record: EvaluationRecord, labelled: LabelledSet) -> list[str]:
    if record.data.split_digest == labelled.split_digest:
        return []
    return [f"they belong to other images, labels or another split ({record.data.name}; {record.data.split_rule})"]


def _other_settings(old: Mapping[str, Any], config: EvaluationConfig) -> list[str]:
    old, new = without_folders(old), without_folders(as_plain(config))
    return [
        f"evaluation.{key} was {old[key]}, now {new[key]}"
        for key in new
        if key in old and key not in NOT_DECISIVE and old[key] != new[key]
    ]


def _left_out(record: AnyRecord, evaluation: Evaluation) -> list[str]:
    specs = _shared(model.spec for model in record.models.values())
    rows = record.rows if isinstance(record, ResultsRecord | FractionsRecord) else ()
    protocols = [row.protocol for row in rows if row.protocol != END_TO_END]
    fractions = [row.fraction for row in record.rows] if isinstance(record, FractionsRecord) else []
    left_out = [f"the model {spec}" for spec in _not_in(specs, _shared(evaluation.specs))]
    if evaluation.protocols:
        left_out += [f"the protocol {name}" for name in _not_in(protocols, evaluation.protocols)]
    left_out += [f"the fraction {fraction:g}" for fraction in _not_in(fractions, evaluation.fractions)]
    if isinstance(record, RobustnessRecord) and record.shifts is not None and not evaluation.has_shifts:
        left_out.append("the results under shifts")
    if isinstance(record, ResultsRecord) and record.has_baseline and not evaluation.has_baseline:
        left_out.append(f"the baseline {record.baseline}")
    return [f"{what} is left out" for what in left_out]


def _shared(specs: Iterable[str]) -> list[str]:
    """As files hold them; those of earlier versions hold whole paths."""
    return [shared_name(spec, num_parts=2) for spec in specs]


def _not_in(old: Iterable[Any], new: Iterable[Any]) -> list[Any]:
    return [one for one in dict.fromkeys(old) if one not in set(new)]
