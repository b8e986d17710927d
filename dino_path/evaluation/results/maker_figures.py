"""How much each model's features encode centres or scanners: figures, the lines of a page, and their record.

"Maker" is a centre or a scanner. Shape suffixes: N images of the cohort, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dino_path.config import EvaluationConfig
from dino_path.errors import DataError
from dino_path.evaluation.measures.intervals import Score
from dino_path.evaluation.measures.sample import Sample
from dino_path.evaluation.protocols.cache import Features
from dino_path.evaluation.protocols.clustering import clustering_score
from dino_path.evaluation.protocols.held_out import leave_one_maker_out, maker_predictability
from dino_path.evaluation.protocols.makers import Cohort, neighbourhood
from dino_path.evaluation.results.writing import markdown_table

METRIC = "balanced_accuracy"
FIGURES = {  # name -> heading; "kind" becomes centre or scanner
    "robustness_index": "robustness index",
    "croma": "CRoMa, median",
    "croma_worst_tenth": "CRoMa, worst tenth",
    "clustering_score": "clustering score",
    "told_within_class": "kind told within class",
    "accuracy_known": "accuracy, known kinds",
    "accuracy_new": "accuracy, new kind",
    "drop": "drop",
}
NEUTRAL = {"robustness_index": "0.500", "croma": "0.000", "croma_worst_tenth": "0.000", "clustering_score": "0.000"}
LOWEST = {"croma": -1.0, "croma_worst_tenth": -1.0, "clustering_score": -1.0, "drop": -1.0}
IS_DIFFERENCE = ("drop",)
FIRST = "robustness_index"


@dataclass(frozen=True)
class MakerResult:
    """One model's figures of one cohort, by the names of FIGURES, and what belongs to them in the record."""

    figures: dict[str, Sample]
    settings: dict[str, Any]
    chance: float | None
    notes: list[str] = field(default_factory=list)


def maker_figures(features_ND: Features, cohort: Cohort, config: EvaluationConfig) -> MakerResult:
    """All that the data allow; notes say what they do not."""
    how: dict[str, Any] = {"num_bootstrap": config.num_bootstrap, "seed": config.seed}
    near = neighbourhood(features_ND, cohort, **how)
    figures, notes, chance = {FIRST: near.index}, [], None
    settings: dict[str, Any] = {
        "k": near.k,
        "index_by_k": {str(k): value for k, value in near.index_by_k.items()},
        "support": near.support,
        "num_without_croma": near.num_undefined,
    }
    if not np.isnan(near.croma_tail.value):
        figures |= {"croma": near.croma, "croma_worst_tenth": near.croma_tail}
    if near.num_undefined:
        notes.append(
            f"{near.num_undefined} images have too few neighbours from other {cohort.kind}s or classes for CRoMa"
        )
    if (clusters := clustering_score(features_ND, cohort, **how)) is not None:
        figures["clustering_score"] = clusters.score
        settings |= {"rand_of_class": clusters.of_class, "rand_of_maker": clusters.of_maker}
    else:
        notes.append(f"clustering score: no two classes share two {cohort.kind}s")
    try:
        told = maker_predictability(features_ND, cohort, **how)
        figures["told_within_class"], chance = told.metrics.samples[METRIC], told.chance
    except DataError as error:
        notes.append(f"{cohort.kind} told within class: unknown, {error.found}")
    try:
        left = leave_one_maker_out(features_ND, cohort, **how)
        same, new = left.same.samples[METRIC], left.new.samples[METRIC]
        figures |= {"accuracy_known": same, "accuracy_new": new, "drop": same - new}
        settings["accuracy_by_maker"] = left.by_maker
    except DataError as error:
        notes.append(f"accuracy at a new {cohort.kind}: unknown, {error.found}")
    return MakerResult(figures, settings, chance, notes)


def maker_score(name: str, sample: Sample) -> Score:
    """One of FIGURES with its interval."""
    return sample.difference() if name in IS_DIFFERENCE else sample.score(lowest=LOWEST.get(name, 0.0))


def _differences(
    results: Mapping[str, MakerResult], pairs: Sequence[tuple[str, str]]
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """One model less another, figure by figure, on the same images with the same resamples."""
    for one, other in pairs:
        mine, theirs = results[one].figures, results[other].figures
        yield one, other, {
            name: (mine[name] - theirs[name]).difference(lowest=LOWEST.get(name, 0.0))
            for name in FIGURES if name in mine and name in theirs
        }  # fmt: skip


def maker_lines(cohort: Cohort, results: Mapping[str, MakerResult], pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
    known = [name for name in FIGURES if any(name in one.figures for one in results.values())]
    headings = [FIGURES[name].replace("kind", cohort.kind) for name in known]
    cells = [
        [model, *(str(maker_score(name, one.figures[name])) if name in one.figures else "-" for name in known)]
        for model, one in results.items()
    ]
    chance = next(iter(results.values())).chance
    neutral = NEUTRAL | ({} if chance is None else {"told_within_class": f"{chance:.3f}"})
    yield from markdown_table(
        [f"{cohort.kind}s", *headings], [*cells, ["neither, or chance", *(neutral.get(name, "-") for name in known)]]
    )
    yield ""
    by_maker = {model: one.settings.get("accuracy_by_maker", {}) for model, one in results.items()}
    if any(by_maker.values()):
        tested = list(next(iter(by_maker.values())))
        rows = [[model, *(f"{values[name]:.3f}" for name in tested)] for model, values in by_maker.items()]
        yield from markdown_table([f"accuracy at a new {cohort.kind}, by {cohort.kind}", *tested], rows)
        yield ""
    if pairs:
        rows = [
            [f"{one} - {other}", *(str(scores[name]) if name in scores else "-" for name in known)]
            for one, other, scores in _differences(results, pairs)
        ]
        yield from markdown_table([f"difference, {cohort.kind}s", *headings], rows)
        yield ""


def maker_record(
    cohort: Cohort, results: Mapping[str, MakerResult], pairs: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """For JSON: a `MakersRecord`."""
    differences: dict[str, dict[str, Any]] = {model: {} for model in results}
    for one, other, scores in _differences(results, pairs):
        differences[one][other] = {name: score.record() for name, score in scores.items()}
    return {
        "kind": cohort.kind,
        "counts": cohort.counts(),
        "unit": cohort.units.name,
        "num_units": cohort.units_by_maker(),
        "told_by_chance": next(iter(results.values())).chance,
        "rows": [
            {
                "model": model,
                "figures": {name: maker_score(name, sample).record() for name, sample in one.figures.items()},
                **one.settings,
                "differences": differences[model],
            }
            for model, one in results.items()
        ],
    }
