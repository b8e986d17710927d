"""Extractors side by side on slides that have one label, or one survival time, each.

Shape suffixes: R repeats, N cases, C classes, D features.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from dino_path.atomic import atomic_write
from dino_path.config import CohortConfig
from dino_path.evaluation.cohorts.cohort import Cohort, Source, cohort_notes
from dino_path.evaluation.cohorts.files import (
    RESULTS,
    aggregators_of,
    case_rows,
    cohort_record,
    source_record,
    write_csv,
)
from dino_path.evaluation.cohorts.folds import Folds, fold_notes
from dino_path.evaluation.cohorts.heatmap import AttentionMap, half_of_attention, write_geojson, write_picture
from dino_path.evaluation.cohorts.mean_pooling import cox_risks, mean_logistic
from dino_path.evaluation.cohorts.measuring import Measured, interval_words, measure_classes, measure_risks
from dino_path.evaluation.cohorts.networks import Networks, safe_name
from dino_path.evaluation.cohorts.page import page_of
from dino_path.evaluation.cohorts.scan import Scan, scan, tiles_that_fit
from dino_path.evaluation.measures.confusion import Floats
from dino_path.evaluation.measures.intervals import Score
from dino_path.features.bags import Rectangles
from dino_path.progress import progress
from dino_path.records.environment import shared_environment
from dino_path.records.labelled import ScoreRecord
from dino_path.records.slide_evaluation import TILE_COUNT, MapRecord, SlideRow, SlidesRecord, write_slides_record
from dino_path.settings import as_plain
from dino_path.slides.slide import Slide

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One extractor with one aggregator.

    Attributes:
        source: name of the extractor, or TILE_COUNT.
        aggregator: mean, abmil or cox.
        scores: (R, N, C) class probabilities, or (R, N, 1) risks, of each case by models that have not seen it.
        differences: other extractor -> metric -> this one minus the other, by the same aggregator.
    """

    source: str
    aggregator: str
    scores: Floats
    measured: Measured
    differences: Mapping[str, Mapping[str, Score]] = field(default_factory=dict)


def evaluate_slides(
    cohort: Cohort,
    sources: Sequence[Source],
    folds: Folds,
    config: CohortConfig,
    *,
    out: Path,
    mapped: Sequence[str] = (),
    slides: Mapping[str, Path] | None = None,
    device: torch.device,
) -> SlidesRecord:
    """Evaluate every extractor with every aggregator, and write the results to `out`.

    `slides.json`, `.md` and `.csv`, `cases.csv` (folds), `predictions.csv`, and `maps/<extractor>/<slide>.geojson` and
    `.png`. Trained networks are kept in `out/networks`: called again, only what is missing is trained.

    Args:
        mapped: slides of which a map of attention is drawn, for each extractor.
        slides: slide name -> slide file, to draw the maps over.

    Raises:
        DataError: a feature file cannot be read, or a Cox regression does not converge.
        SlideError: a slide to draw over cannot be read.
    """
    aggregators = aggregators_of(cohort, config)
    counts_N = np.log(np.max([source.num_tiles for source in sources], axis=0))
    linear = "cox" if cohort.task == "survival" else "mean"
    rows = [_row(TILE_COUNT, linear, _linear(counts_N[:, None], cohort, folds, config), cohort, folds, config)]
    maps: list[MapRecord] = []
    for source in sources:
        networks = Networks.of(out, cohort, source, folds, config, device) if "abmil" in aggregators else None
        trains = networks is not None and not networks.are_finished(folds)
        scanned: Scan | None = None
        if trains or linear in aggregators:
            scanned = scan(source, memory_gb=config.abmil_memory_gb if trains else None, seed=config.seed)
        for aggregator in aggregators:
            if networks is not None and aggregator == "abmil":
                scores_RNC = networks.scores(folds, scanned)
            else:
                assert scanned is not None
                scores_RNC = _linear(scanned.means, cohort, folds, config)
            rows.append(_row(source.name, aggregator, scores_RNC, cohort, folds, config))
        if networks is not None:
            maps += [_draw(networks, folds, slide, out, (slides or {}).get(slide)) for slide in mapped]
    rows = _with_differences(rows, {source.name: source.is_null for source in sources})
    record = SlidesRecord(
        data=cohort_record(cohort, folds, config),
        config=as_plain(config),
        sources={source.name: source_record(source) for source in sources},
        rows=tuple(_row_record(row, cohort) for row in rows),
        maps=tuple(maps),
        notes=tuple(_notes(rows, cohort, sources, folds, config)),
        environment=shared_environment(),
    )
    write_slides_record(out / RESULTS, record)
    with atomic_write(out / "slides.md") as stream:
        stream.write(page_of(record))
    write_csv(out / "slides.csv", _number_rows(rows))
    write_csv(out / "cases.csv", case_rows(cohort, sources, folds))
    write_csv(out / "predictions.csv", _prediction_rows(rows, cohort))
    return record


def _linear(features_ND: Floats, cohort: Cohort, folds: Folds, config: CohortConfig) -> Floats:
    """Class probabilities (R, N, C), or risks (R, N, 1), of one vector for each case."""
    is_survival = cohort.times is not None
    scores_RNC = np.zeros((folds.num_repeats, len(cohort.cases), 1 if is_survival else len(cohort.classes)))
    what = "Cox regression" if is_survival else "logistic regression"
    for fold in progress(folds, what, total=len(folds), unit="folds"):
        if cohort.times is not None:
            found = cox_risks(features_ND, cohort.times, cohort.labels, fold, config)[:, None]
        else:
            found = mean_logistic(features_ND, cohort.labels, fold)
        scores_RNC[fold.repeat - 1, fold.test] = found
    return scores_RNC


def _row(source: str, aggregator: str, scores_RNC: Floats, cohort: Cohort, folds: Folds, config: CohortConfig) -> Row:
    if cohort.task == "survival":
        measured = measure_risks(scores_RNC[..., 0], cohort, folds, config)
    else:
        measured = measure_classes(scores_RNC, cohort, folds, config)
    metric = next(iter(measured.samples))
    logger.info("%s, %s: %s %s", source, aggregator, metric, measured.score(metric))
    return Row(source, aggregator, scores_RNC, measured)


def _with_differences(rows: Sequence[Row], is_null: Mapping[str, bool]) -> list[Row]:
    """Paired differences with the same aggregator: each extractor minus every control, and minus every later extractor.

    Where all are nulls, the first stands for mine.
    """
    order = list(is_null)
    nulls = {name for name in order if is_null[name]} if not all(is_null.values()) else {*order[1:]}

    def is_other(row: Row, other: Row) -> bool:
        if TILE_COUNT in (row.source, other.source) or row.aggregator != other.aggregator or row.source in nulls:
            return False
        return other.source in nulls or order.index(row.source) < order.index(other.source)

    return [
        replace(row, differences={
            other.source: row.measured.less(other.measured) for other in rows if is_other(row, other)
        })
        for row in rows
    ]  # fmt: skip


def _draw(networks: Networks, folds: Folds, slide: str, out: Path, slide_file: Path | None) -> MapRecord:
    """Draw the attention of the networks that have not seen a slide, averaged over the repeats."""
    cohort, source = networks.cohort, networks.source
    case = next(number for number, slides in enumerate(cohort.slides) if slide in slides)
    answers = networks.answers(folds, case)
    place = cohort.slides[case].index(slide)
    sizes = [bag.num_tiles for bag in source.bags[case]]
    first = sum(sizes[:place])
    attention_N = np.stack([one.attention for one in answers]).mean(axis=0, dtype=np.float64) * sum(sizes)
    of_slide_N = attention_N[first : first + sizes[place]]
    rectangles: Rectangles = source.bags[case][place].rectangles()
    probabilities_C = np.mean([one.probabilities for one in answers], axis=0)
    guess = int(probabilities_C.argmax())
    largest, half = float(of_slide_N.max()), half_of_attention(of_slide_N)
    caption = (
        f"{source.name}: {cohort.classes[guess]} {probabilities_C[guess]:.2f} (labelled "
        f"{cohort.classes[cohort.labels[case]]}); half of the attention on {100 * half:.0f} % of {sizes[place]} tiles, "
        f"at most {largest:.1f} x even"
    )
    drawn = AttentionMap(rectangles, of_slide_N, caption)
    stem = f"maps/{safe_name(source.name)}/{safe_name(slide)}"
    opened = None if slide_file is None else Slide.open(slide_file, mpp=1.0)  # only ratios count here
    write_geojson(out / f"{stem}.geojson", drawn, (0, 0) if opened is None else opened.bounds_origin)
    write_picture(out / f"{stem}.png", drawn, opened)
    return MapRecord(
        source=source.name, slide=slide, geojson=f"{stem}.geojson", picture=f"{stem}.png", largest=largest, half=half
    )


def _notes(
    rows: Sequence[Row], cohort: Cohort, sources: Sequence[Source], folds: Folds, config: CohortConfig
) -> Iterator[str]:
    """Notes for reading the numbers, the most important first."""
    yield f"in brackets: {interval_words(rows[0].measured, cohort)}; folds: {folds.rule(cohort, config)}"
    yield (
        f"intervals show how numbers vary with the tested {cohort.units.name}, not with the training ones;"
        f" differences are paired, on the same cases and folds"
    )
    if not any(source.is_null for source in sources):
        yield (
            "no untrained network and no colour control among these: random features alone reach an AUROC of 0.63 on "
            "some slide tasks; also embed `untrained:MODEL` and `mean-colour`, and give their folders"
        )
    yield from _no_better_than_guessing(rows, cohort)
    yield from cohort_notes(cohort)
    yield from fold_notes(cohort, folds)
    if cohort.task == "survival":
        events = int(cohort.labels.sum())
        yield (
            f"Cox: ridge penalty {config.cox_penalty:g} on at most {config.cox_components} principal components, never "
            f"more than half the training events ({events} events in all); risks are compared within a test part"
        )
    else:
        yield "mean: logistic regression of fixed strength; classes have equal weight in every fit, however rare"
    if "abmil" in aggregators_of(cohort, config):
        yield (
            f"abmil: {config.abmil_epochs} epochs, {config.abmil_tiles} tiles of a case in a step, no validation;"
            f" every tile of a tested case counts"
        )
        for source in sources:
            most = tiles_that_fit(source.num_tiles, source.num_features, config.abmil_memory_gb)
            if num_sampled := int((source.num_tiles > most).sum()):
                yield (
                    f"abmil, {source.name}: training draws from {most:,} random tiles of {num_sampled} large cases "
                    f"(cohort.abmil_memory_gb={config.abmil_memory_gb:g})"
                )
    yield (
        f"{TILE_COUNT}: the logarithm of the number of tiles as the only feature, in the same folds: the amount of"
        " tissue"
    )


def _no_better_than_guessing(rows: Sequence[Row], cohort: Cohort) -> Iterator[str]:
    metric = "concordance" if cohort.task == "survival" else "auroc"
    lost = [row for row in rows if row.source != TILE_COUNT and not row.measured.score(metric).low > 0.5]
    if lost:
        named = ", ".join(f"{row.source} ({row.aggregator})" for row in lost)
        yield f"not significantly better than guessing, with {cohort.units.count} {cohort.units.name}: {named}"


def _row_record(row: Row, cohort: Cohort) -> SlideRow:
    measured = row.measured
    return SlideRow.model_validate({
        "source": row.source,
        "aggregator": row.aggregator,
        "metrics": {name: _score_record(measured.score(name)) for name in measured.samples},
        "recall": {label: _score_record(score) for label, score in measured.recall.items()},
        "confusion": None if measured.confusion is None else measured.confusion.tolist(),
        "by_repeat": {name: [_number(value) for value in values] for name, values in measured.by_repeat.items()},
        "by_centre": {centre: {name: _number(value) for name, value in values.items()}
                      for centre, values in measured.by_centre.items()},
        "interval": interval_words(measured, cohort),
        "differences": {other: {name: _score_record(score) for name, score in scores.items()}
                        for other, scores in row.differences.items()},
    })  # fmt: skip


def _score_record(score: Score) -> ScoreRecord:
    return ScoreRecord.model_validate(score.record())


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _number_rows(rows: Sequence[Row]) -> Iterator[Sequence[object]]:
    yield "features", "aggregator", "less", "metric", "value", "low", "high"
    for row in rows:
        for name in row.measured.samples:
            yield row.source, row.aggregator, "", name, *row.measured.score(name).decimals()
        for label, score in row.measured.recall.items():
            yield row.source, row.aggregator, "", f"recall of {label}", *score.decimals()
        for other, scores in row.differences.items():
            for name, score in scores.items():
                yield row.source, row.aggregator, other, name, *score.decimals()


def _prediction_rows(rows: Sequence[Row], cohort: Cohort) -> Iterator[Sequence[object]]:
    """Each case as each row answers it: the mean over repeats, and how often it was right."""
    is_survival = cohort.task == "survival"
    answers = ["mean_risk"] if is_survival else [f"probability of {label}" for label in cohort.classes]
    yield cohort.unit, "label", "features", "aggregator", *answers, *([] if is_survival else ["times_right", "of"])
    for row in rows:
        mean_NC = row.scores.mean(axis=0)
        right_N = (row.scores.argmax(axis=2) == cohort.labels).sum(axis=0)
        for case, name in enumerate(cohort.cases):
            counts = [] if is_survival else [int(right_N[case]), len(row.scores)]
            label = cohort.classes[cohort.labels[case]]
            yield name, label, row.source, row.aggregator, *(f"{v:.6f}" for v in mean_NC[case]), *counts
