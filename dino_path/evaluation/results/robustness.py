"""How far features hold at another centre, on another scanner, and under changes of stain and image: a page for models.

Shape suffixes: N images of the set or cohort, S images under shifts, D features.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from dino_path.config import EvaluationConfig
from dino_path.distributed import World
from dino_path.evaluation.labelled.datasets import LabelledSet
from dino_path.evaluation.labelled.division import Division, divide
from dino_path.evaluation.measures.sample import Sample
from dino_path.evaluation.protocols.cache import FeatureCache, Images, load_models
from dino_path.evaluation.protocols.makers import MAX_IMAGES, Cohort, cohorts
from dino_path.evaluation.protocols.shifts import (
    ShiftCurve,
    accuracy_under_shifts,
    images_to_shift,
    pixel_change,
    shifted_images,
    shifts_of,
)
from dino_path.evaluation.results.input_notes import input_notes
from dino_path.evaluation.results.maker_figures import (
    FIRST,
    METRIC,
    MakerResult,
    maker_figures,
    maker_lines,
    maker_record,
    maker_score,
)
from dino_path.evaluation.results.shift_figures import at_level, shift_lines, shift_record
from dino_path.evaluation.results.writing import Outcome, markdown_page, write_results
from dino_path.features.shifts import LEVELS
from dino_path.records.feature_kinds import is_comparison, split_kind

logger = logging.getLogger(__name__)


def evaluate_robustness(
    specs: Sequence[str],
    labelled: LabelledSet,
    config: EvaluationConfig,
    *,
    with_shifts: bool,
    device: torch.device,
    out: Path,
    num_workers: int,
) -> Outcome:
    """Figures of centres and scanners where the data name them, and accuracy under shifts.

    Writes robustness.json, .csv and .md and the split to `out`. Features are kept as `evaluate_table`
    keeps them.

    Args:
        specs: models, as `features.extractor.load_extractor` reads them.
        with_shifts: whether test images are looked at under shifts too.

    Raises:
        CheckpointError: a model cannot be loaded.
        ConfigError: a model is given twice.
        DataError: the data bring a split and a cross-validation was asked for.
        TileStoreError: an image cannot be read.
    """
    division, of_makers = divide(labelled, config), cohorts(labelled, seed=config.seed)
    models, cache = load_models(specs, device), FeatureCache.create(out, config, device, num_workers)
    makers: list[dict[str, MakerResult]] = [{} for _ in of_makers]
    curves: dict[str, ShiftCurve] = {}
    shifts = shifts_of(config) if with_shifts else []
    chosen_S = images_to_shift(division, config)
    for name, (_, extractor) in models.items():
        features_ND = cache.features(extractor, Images.of(labelled))
        for cohort, results in zip(of_makers, makers, strict=True):
            results[name] = maker_figures(features_ND[cohort.chosen], cohort, config)
            logger.info("%s, %ss: robustness index %.3f", name, cohort.kind, results[name].figures[FIRST].value)
        if shifts:
            shifted = {shift: cache.features(extractor, shifted_images(labelled, chosen_S, shift)) for shift in shifts}
            curves[name] = accuracy_under_shifts(features_ND, shifted, division, chosen_S, config)
            logger.info("%s, unshifted: balanced accuracy %s", name, curves[name].unshifted.balanced_accuracy)
    pairs = compared(specs_of := {name: spec for name, (spec, _) in models.items()})
    changes = {shift: pixel_change(labelled, chosen_S, shift) for shift in shifts}
    parts = [
        *(line for c, r in zip(of_makers, makers, strict=True) for line in maker_lines(c, r, pairs)),
        *(shift_lines(curves, pairs, changes) if curves else ()),
    ]
    notes = [
        *_notes(division, of_makers, makers, curves, len(chosen_S)), *_missing_controls(specs_of), *labelled.notes,
        *input_notes((extractor for _, extractor in models.values()), labelled.source, config.input_px),
    ]  # fmt: skip
    text = markdown_page(f"{division.name}, robustness", parts, notes)
    record = {
        "baseline": "not part of this evaluation",
        "makers": [maker_record(c, r, pairs) for c, r in zip(of_makers, makers, strict=True)],
        "shifts": shift_record(curves, pairs, changes, len(chosen_S)) if curves else None,
        "notes": notes,
    }
    rows = _csv_rows(of_makers, makers, curves)
    write_results(out, "robustness", division, config, models, record=record, csv_rows=rows, text=text)
    return Outcome(text, _samples(makers, curves), division.units().name)


def _samples(
    makers: Sequence[Mapping[str, MakerResult]], curves: Mapping[str, ShiftCurve]
) -> dict[str, dict[str, Sample]]:
    """What can lead a set: of the centres (else the scanners) accuracies; under shifts their mean at the last level."""
    samples = {
        name: {model: one.figures[name] for model, one in results.items()}
        for results in makers[:1]
        for name in ("accuracy_known", "accuracy_new")
        if all(name in one.figures for one in results.values())
    }
    if curves:
        samples["accuracy_shifted"] = {model: at_level(curve, LEVELS[-1]) for model, curve in curves.items()}
    return samples


def extract_robustness_together(
    specs: Sequence[str],
    labelled: LabelledSet,
    config: EvaluationConfig,
    *,
    with_shifts: bool,
    world: World,
    out: Path,
    num_workers: int,
) -> None:
    """Extract this process's share of the features that `evaluate_robustness` needs, and wait for the others."""
    cache = FeatureCache.create(out, config, world.device, num_workers)
    shifts = shifts_of(config) if with_shifts else []
    chosen_S = images_to_shift(divide(labelled, config), config)
    work = [Images.of(labelled), *(shifted_images(labelled, chosen_S, shift) for shift in shifts)]
    for _, extractor in load_models(specs, world.device).values():
        for images in work:
            cache.extract_share(extractor, images, rank=world.rank, size=world.size)
    world.barrier()


def compared(specs: Mapping[str, str]) -> list[tuple[str, str]]:
    """Which models are compared, as in `evaluate_table`: each of ours with all controls and those of ours after it.

    Args:
        specs: by the model's name.
    """
    order = list(specs)
    is_control = {name: is_comparison(spec) for name, spec in specs.items()}
    if all(is_control.values()):
        is_control[order[0]] = False
    return [
        (one, other) for one in order for other in order
        if one != other and not is_control[one] and (is_control[other] or order.index(one) < order.index(other))
    ]  # fmt: skip


def _notes(
    division: Division,
    of_makers: Sequence[Cohort],
    makers: Sequence[Mapping[str, MakerResult]],
    curves: Mapping[str, ShiftCurve],
    num_shifted: int,
) -> Iterator[str]:
    for cohort, results in zip(of_makers, makers, strict=True):
        counts = ", ".join(f"{name} {number}" for name, number in cohort.units_by_maker().items())
        yield (
            f"{cohort.kind}s: {len(cohort.labels)} distinct images of training and test"
            f"{' (a random part)' if len(cohort.labels) == MAX_IMAGES else ''}; {cohort.units.name}: {counts}; in"
            f" brackets: 95 % interval over {cohort.units.count} {cohort.units.name} of these {cohort.kind}s, not over"
            f" {cohort.kind}s; accuracies are balanced, of a logistic regression"
        )
        found: dict[str, list[str]] = {}
        for model, one in results.items():
            for note in one.notes:
                found.setdefault(note, []).append(model)
        for note, models in found.items():
            yield note if len(models) == len(results) else f"{', '.join(models)}: {note}"
        ks = ", ".join(f"{model} {one.settings['k']}" for model, one in results.items())
        yield f"number of neighbours for the robustness index, chosen for the best classification: {ks}"
    if not of_makers:
        yield (
            "the data name no two centres or scanners (columns `centre`, `scanner`): simulated shifts are used instead"
        )
    if curves:
        interval = next(iter(curves.values())).unshifted.interval
        num_tested = len(np.unique(division.labelled.content[division.tested]))
        part = " (a random part)" if num_shifted < num_tested else ""
        yield (
            f"shifts: {num_shifted} test images{part}; in brackets: {interval};"
            " accuracy of a logistic regression that was trained on unchanged images; found again: share of the images"
            " whose nearest unchanged image is themselves"
        )
        yield from division.notes()


def _missing_controls(specs: Mapping[str, str]) -> Iterator[str]:
    """The nulls that every table needs, where they are not among the models."""
    plain = [split_kind(spec)[1] for spec in specs.values()]
    if not any(spec.startswith("untrained:") for spec in plain):
        yield "no untrained network among the models: add untrained:MODEL, to see what training has changed"
    if not any(spec in ("mean-colour", "colour-statistics") for spec in plain):
        yield "no colour control among the models: add colour-statistics, to see what colour alone achieves"


def _csv_rows(
    of_makers: Sequence[Cohort], makers: Sequence[Mapping[str, MakerResult]], curves: Mapping[str, ShiftCurve]
) -> Iterator[Sequence[object]]:
    """One line per model, question and figure."""
    yield "model", "of", "level", "metric", "value", "low", "high", "interval_over"
    for cohort, results in zip(of_makers, makers, strict=True):
        over = f"{cohort.units.count} {cohort.units.name}"
        for model, one in results.items():
            for name, sample in one.figures.items():
                yield model, f"{cohort.kind}s", "", name, *maker_score(name, sample).decimals(), over
    for model, curve in curves.items():
        over = f"{curve.unshifted.num_units} {curve.unshifted.unit}"
        yield model, "unshifted", 0, METRIC, *curve.unshifted.balanced_accuracy.decimals(), over
        for shift, under in curve.under.items():
            scores = {
                METRIC: under.metrics.balanced_accuracy,
                "cosine": under.cosine.score(lowest=-1.0),
                "found_again": under.found.score(),
            }
            for name, score in scores.items():
                yield model, shift.name, shift.level, name, *score.decimals(), over
