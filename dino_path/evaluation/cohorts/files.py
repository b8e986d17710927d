"""The files of a slide-level evaluation, and which earlier results would be lost, checked without torch."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from dino_path.atomic import atomic_write
from dino_path.config import CohortConfig
from dino_path.errors import DataError
from dino_path.evaluation.cohorts.cohort import Cohort, Source, patients_by_class
from dino_path.evaluation.cohorts.folds import Folds
from dino_path.records.slide_evaluation import TILE_COUNT, CohortRecord, SourceRecord, read_slides_record
from dino_path.settings import as_plain
from dino_path.sharing import shared_name, without_folders
from dino_path.table_file import plain_cells

RESULTS = "slides.json"
NOT_DECISIVE = (
    "aggregators",
    "task",
    "unit",
    "ordered_classes",
    "folds",
    "repeats",
    "by_centre",
)  # in digests, or rows


def aggregators_of(cohort: Cohort, config: CohortConfig) -> tuple[str, ...]:
    """The name and digest of an extractor's rows."""
    return ("cox",) if cohort.task == "survival" else tuple(dict.fromkeys(config.aggregators))


def folds_digest(cohort: Cohort, folds: Folds) -> str:
    """Of who is tested by models of whom."""
    return hashlib.sha256(repr([cohort.cases, folds.fold_of.tolist()]).encode()).hexdigest()


def refuse_to_lose_slides(
    out: Path, cohort: Cohort, sources: Sequence[Source], folds: Folds, config: CohortConfig
) -> None:
    """Check that no result in `out` would be lost.

    Raises:
        DataError: there are results of other cases, folds or settings, or of extractors that are left out now.
    """
    file = out / RESULTS
    if not file.exists():
        return
    record = read_slides_record(file)
    lost = []
    if (record.data.digest, record.data.folds_digest) != (cohort.digest(), folds_digest(cohort, folds)):
        lost.append(f"they have other cases, labels or folds ({record.data.name}; {record.data.folds})")
    new, old = without_folders(as_plain(config)), without_folders(record.config)
    lost += [
        f"cohort.{key} was {old[key]}, now {new[key]}"
        for key in new
        if key in old and key not in NOT_DECISIVE and old[key] != new[key]
    ]
    names = {source.name for source in sources}
    lost += [f"{name} is left out" for name in record.sources if name not in names]
    judged = dict.fromkeys(row.aggregator for row in record.rows if row.source != TILE_COUNT)
    lost += [f"{name} is left out" for name in judged if name not in aggregators_of(cohort, config)]
    if lost:
        raise DataError(
            str(file),
            f"holds results that would be lost: {'; '.join(lost)}.",
            "Results are replaced only by results of the same cases and settings with at least the same extractors.",
            "Give another --out, or evaluate everything together.",
        )


def cohort_record(cohort: Cohort, folds: Folds, config: CohortConfig) -> CohortRecord:
    """What `slides.json` says of the cases."""
    return CohortRecord(
        name=cohort.name,
        task=cohort.task,
        unit=cohort.unit,
        classes=cohort.classes,
        is_ordered=cohort.is_ordered,
        num_cases=len(cohort.cases),
        num_patients=cohort.units.count if cohort.has_patients else None,
        num_slides=sum(map(len, cohort.slides)),
        num_by_class=patients_by_class(cohort),
        left_out=dict(cohort.left_out),
        folds=folds.rule(cohort, config),
        num_folds=folds.num_folds,
        num_repeats=folds.num_repeats,
        digest=cohort.digest(),
        folds_digest=folds_digest(cohort, folds),
    )


def source_record(source: Source) -> SourceRecord:
    return SourceRecord(
        folder=shared_name(str(source.path), num_parts=2),
        encoder=source.encoder,
        encoder_digest=source.encoder_digest,
        num_features=source.num_features,
        num_tiles=int(source.num_tiles.sum()),
        is_null=source.is_null,
    )


def write_csv(file: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write a table, whole or not at all; its first row is the header."""
    with atomic_write(file) as stream:
        csv.writer(stream, lineterminator="\n").writerows(map(plain_cells, rows))


def case_rows(cohort: Cohort, sources: Sequence[Source], folds: Folds) -> Iterable[Sequence[object]]:
    """The header and rows of `cases.csv`: each case, its facts, and the fold in which it is tested."""
    outcome = ("event", "time") if cohort.times is not None else ("label",)
    repeats = [f"fold_of_repeat_{repeat + 1}" for repeat in range(folds.num_repeats)]
    yield [cohort.unit, "slides", "patient", "centre", *outcome, "num_tiles", *repeats]
    for case, name in enumerate(cohort.cases):
        label = cohort.classes[cohort.labels[case]] if cohort.times is None else int(cohort.labels[case])
        yield [
            name,
            ";".join(cohort.slides[case]),
            cohort.patients[case] if cohort.has_patients else "",
            "" if cohort.centres is None else cohort.centres[case],
            label,
            *([] if cohort.times is None else [f"{cohort.times[case]:g}"]),
            int(sources[0].num_tiles[case]),
            *(folds.fold_of[:, case] + 1).tolist(),
        ]
