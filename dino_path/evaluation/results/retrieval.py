"""Retrieval with several frozen extractors: classes of the nearest images of other patients.

Shape suffixes: Q queries, K neighbours, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dino_path.config import EvaluationConfig
from dino_path.evaluation.labelled.datasets import LabelledSet
from dino_path.evaluation.labelled.division import Division, divide
from dino_path.evaluation.labelled.queries import Queries, queries_of
from dino_path.evaluation.measures.intervals import LEAST_FREEDOM, Score
from dino_path.evaluation.measures.means import ClassMeans, class_means
from dino_path.evaluation.protocols.cache import FeatureCache, Images, load_models
from dino_path.evaluation.protocols.retrieval import NUM_NEIGHBOURS, Retrieved, retrieve, scores_of_queries, units_among
from dino_path.evaluation.results.input_notes import input_notes
from dino_path.evaluation.results.neighbour_sheet import others, write_sheet
from dino_path.evaluation.results.row import compared_pairs
from dino_path.evaluation.results.writing import Outcome, markdown_page, markdown_table, write_results
from dino_path.sharing import shared_name

logger = logging.getLogger(__name__)

SHEET = "neighbours.jpg"
LEADING = ("mMV@1", "mMV@5", "mMV@10", "mAP")  # what differences and classes are shown for


@dataclass(frozen=True)
class RetrievalRow:
    """One model; `means` and the differences of the balanced ones are by measure.

    `units_among` is from how many patients (slides) the ten nearest are, on average.
    """

    model: str
    spec: str
    means: dict[str, ClassMeans]
    retrieved: Retrieved
    units_among: float
    differences: dict[str, dict[str, Score]] = field(default_factory=dict)


def evaluate_retrieval(
    specs: Sequence[str],
    labelled: LabelledSet,
    config: EvaluationConfig,
    *,
    device: torch.device,
    out: Path,
    num_workers: int,
) -> Outcome:
    """Every model's neighbours; writes retrieval.json, .csv and .md, split.csv and neighbours.jpg.

    Args:
        specs: models, as `features.extractor.load_extractor` reads them.
        num_workers: processes that read and decode images.

    Raises:
        CheckpointError: a model cannot be loaded.
        ConfigError: a model is given twice.
        DataError: no test image has its class in another patient (slide).
        TileStoreError: an image cannot be read.
    """
    division = divide(labelled, config)
    queries = queries_of(division)
    models, cache = load_models(specs, device), FeatureCache.create(out, config, device, num_workers)
    rows = []
    for name, (spec, extractor) in models.items():
        features_ND = cache.features(extractor, Images.of(labelled))
        rows.append(_row(name, spec, retrieve(features_ND, labelled, queries, config.knn_index, seed=config.seed),
                         labelled, queries, config))  # fmt: skip
        logger.info("%s: mMV@5 %s", name, rows[-1].means["mMV@5"].balanced.score())
    _compare(rows)
    notes = [
        *_notes(division, queries, rows, config),
        *input_notes((extractor for _, extractor in models.values()), labelled.source, config.input_px),
    ]
    text = markdown_page(f"{division.name}, retrieval", _lines(rows, labelled, queries), notes)
    write_sheet(out / SHEET, labelled, queries, {row.model: row.retrieved for row in rows}, seed=config.seed)
    write_results(
        out, "retrieval", division, config, models, record=_record(rows, labelled, queries, notes),
        csv_rows=_csv_rows(rows, labelled, queries), text=text,
    )  # fmt: skip
    measures = [measure for measure in rows[0].means if measure.startswith("mMV@")]
    samples = {measure: {row.model: row.means[measure].balanced for row in rows} for measure in measures}
    return Outcome(text, samples, queries.units.name)


def _row(
    name: str, spec: str, retrieved: Retrieved, labelled: LabelledSet, queries: Queries, config: EvaluationConfig
) -> RetrievalRow:
    labels_Q = labelled.labels[queries.number]
    means = {
        measure: class_means(
            values_Q, labels_Q, len(labelled.classes), queries.units, num_bootstrap=config.num_bootstrap,
            seed=config.seed,
        )
        for measure, values_Q in scores_of_queries(retrieved, labelled, queries).items()
    }  # fmt: skip
    units_among_nearest = float(units_among(retrieved.neighbours, labelled.units).mean())
    return RetrievalRow(name, spec, means, retrieved, units_among_nearest)


def _compare(rows: Sequence[RetrievalRow]) -> None:
    """Fill in the differences: mine less others, on the same queries with the same resamples."""
    by_name = {row.model: row for row in rows}
    for mine, other in compared_pairs({row.model: row.spec for row in rows}):
        own, others = by_name[mine].means, by_name[other].means
        by_name[mine].differences[other] = {
            measure: (own[measure].balanced - others[measure].balanced).difference() for measure in own
        }


def _lines(rows: Sequence[RetrievalRow], labelled: LabelledSet, queries: Queries) -> Iterator[str]:
    """Tables for people: balanced measures, differences, and each class."""
    measures = list(rows[0].means)
    yield from markdown_table(
        ["model", *measures, f"{labelled.unit_name} among {NUM_NEIGHBOURS}"],
        [
            [row.model, *(str(row.means[m].balanced.score()) for m in measures), f"{row.units_among:.1f}"]
            for row in rows
        ],
    )
    leading = [measure for measure in LEADING if measure in measures]
    differences = [
        [f"{row.model} - {other}", *(str(scores[m]) for m in leading)]
        for row in rows
        for other, scores in row.differences.items()
    ]
    if differences:
        yield ""
        yield from markdown_table(["difference", *leading], differences)
    yield ""
    asked = _asked(labelled, queries)
    yield from markdown_table(
        ["class", "queries", "model", *leading],
        [
            [name, str(asked[name]), row.model, *(str(row.means[m].by_class[label].score()) for m in leading)]
            for label, name in enumerate(labelled.classes) if name in asked
            for row in rows
        ],
    )  # fmt: skip


def _asked(labelled: LabelledSet, queries: Queries) -> dict[str, int]:
    """Queries of each class that has any."""
    counts = np.bincount(labelled.labels[queries.number], minlength=len(labelled.classes))
    return {name: int(count) for name, count in zip(labelled.classes, counts, strict=True) if count}


def _chance(labelled: LabelledSet, queries: Queries) -> float:
    share_Q, labels_Q = queries.num_right / queries.num_others, labelled.labels[queries.number]
    return float(np.mean([share_Q[labels_Q == label].mean() for label in np.unique(labels_Q)]))


def _notes(
    division: Division, queries: Queries, rows: Sequence[RetrievalRow], config: EvaluationConfig
) -> Iterator[str]:
    """Notes, the most important first."""
    labelled, units = division.labelled, queries.units
    what = "the tested images" if division.num_folds is None else "all images"
    freedom = next(iter(rows[0].means.values())).balanced.left_out.freedom
    interval = "no interval, too few" if freedom < LEAST_FREEDOM else "in brackets: 95 % interval"
    yield (
        f"{len(queries.number)} images of {units.count} {units.name} are queries ({what}; split:"
        f" {labelled.split_rule}), each searching all {others(labelled)}, including training images,"
        f" {len(labelled.labels)} in all; classes have equal weight; {interval} over {units.count} {units.name}"
    )
    if labelled.groups is None:
        yield (
            "no patient or slide is known: an image may find images of its own slide, and all numbers here may be"
            " too high; give a column patient_id or slide_id"
        )
    yield (
        "mMV@k: how often the majority of the k most similar images has the class of the query (in a tie, the class"
        " with the most similar image wins)"
    )
    yield (
        "mAP: 1 if all images of its class come before all others, averaged over the queries; mAP@k: the same for"
        " the first k"
    )
    if labelled.groups is not None:
        yield (
            f"{labelled.unit_name} among {NUM_NEIGHBOURS}: from how many {labelled.unit_name} the {NUM_NEIGHBOURS} "
            "most similar images are; near 1, the majority is the vote of a single one"
        )
    yield f"by chance mMV@1 is {_chance(labelled, queries):.3f}, and mAP about that"
    if queries.left_out:
        counts = ", ".join(f"{count} of {name}" for name, count in queries.left_out.items())
        yield f"are no queries, because no other of the {labelled.unit_name} has their class: {counts}"
    if config.knn_index != "flat":
        found = ", ".join(f"{row.model} {row.retrieved.recall:.4f}" for row in rows)
        yield (
            f"approximate search ({config.knn_index}); share of the true {NUM_NEIGHBOURS} nearest that it finds:"
            f" {found}; mAP needs the full ranking, so only evaluation.knn_index=flat gives it"
        )
    yield f"{SHEET}: query images, drawn at random, each with its {NUM_NEIGHBOURS} most similar; it shows file names"
    yield from division.notes()
    yield from labelled.notes


def _record(
    rows: Sequence[RetrievalRow], labelled: LabelledSet, queries: Queries, notes: Sequence[str]
) -> Mapping[str, Any]:
    """The results, as plain values."""
    asked = _asked(labelled, queries)
    return {
        "units": labelled.unit_name,
        "num_queries": asked,
        "num_query_units": queries.units.count,
        "left_out": queries.left_out,
        "num_images": len(labelled.labels),
        "chance": _chance(labelled, queries),
        "rows": [
            {
                "model": row.model,
                "spec": shared_name(row.spec, num_parts=2),
                "balanced": {m: means.balanced.score().record() for m, means in row.means.items()},
                "overall": {m: means.overall.score().record() for m, means in row.means.items()},
                "by_class": {
                    name: {m: means.by_class[label].score().record() for m, means in row.means.items()}
                    for label, name in enumerate(labelled.classes)
                    if name in asked
                },
                "differences": {
                    other: {m: score.record() for m, score in scores.items()}
                    for other, scores in row.differences.items()
                },
                "recall": row.retrieved.recall,
                "units_among_nearest": row.units_among,
            }
            for row in rows
        ],
        "sheet": SHEET,
        "notes": list(notes),
    }


def _csv_rows(rows: Sequence[RetrievalRow], labelled: LabelledSet, queries: Queries) -> Iterator[Sequence[object]]:
    """One line per model, mean and measure."""
    yield "model", "minus", "of", "measure", "value", "low", "high", "interval_over"
    over, asked = f"{queries.units.count} {queries.units.name}", _asked(labelled, queries)
    for row in rows:
        for measure, means in row.means.items():
            samples = {"balanced": means.balanced, "overall": means.overall}
            samples |= {name: one for name, one in zip(labelled.classes, means.by_class, strict=True) if name in asked}
            for name, sample in samples.items():
                yield row.model, "", name, measure, *sample.score().decimals(), over
        for other, scores in row.differences.items():
            for measure, score in scores.items():
                yield row.model, other, "balanced", measure, *score.decimals(), over
