"""How much the features are worth when few labels are known: Table 10 of the DINO paper (Caron et al. 2021).

Logistic regression and k-NN at several fractions of the training labels, every model on the same draws, beside the
supervised network that saw the same labels. Logistic regression is `linear.logistic`, whose strength needs no
validation images: at 1 % there are none to spare.

Shape suffixes: M tested images, L draws of the labelled images.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dino_path.config import EvaluationConfig, FeatureProtocol
from dino_path.evaluation.baseline.supervised import read_draws, read_supervised, refuse_missing
from dino_path.evaluation.labelled.datasets import LabelledSet
from dino_path.evaluation.labelled.division import Division, divide, pooled
from dino_path.evaluation.measures.intervals import Score
from dino_path.evaluation.measures.metrics import mean_over_draws
from dino_path.evaluation.protocols.by_name import TITLES, run_protocol
from dino_path.evaluation.protocols.cache import FeatureCache, Features, Images, load_models
from dino_path.evaluation.results.input_notes import input_notes
from dino_path.evaluation.results.writing import (
    SUPERVISED,
    baseline_missing,
    markdown_page,
    markdown_table,
    write_results,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """One model under one protocol at one fraction of the labels.

    Attributes:
        predicted: (L, M) class numbers of the tested images, one row per draw.
        differences: other model, or the supervised network -> metric -> this one minus the other.
    """

    model: str
    protocol: str
    fraction: float
    predicted: NDArray[np.int64]
    scores: dict[str, Score]
    differences: dict[str, dict[str, Score]] = field(default_factory=dict)

    def record(self) -> dict[str, object]:
        """For JSON."""
        return {
            "model": self.model,
            "protocol": self.protocol,
            "fraction": self.fraction,
            "num_draws": len(self.predicted),
            "metrics": {name: one.record() for name, one in self.scores.items()},
            "differences": {
                other: {name: one.record() for name, one in scores.items()}
                for other, scores in self.differences.items()
            },
        }


def evaluate_fractions(
    specs: Sequence[str],
    labelled: LabelledSet,
    config: EvaluationConfig,
    fractions: Sequence[float],
    *,
    device: torch.device,
    out: Path,
    baseline: Path | None,
    num_workers: int,
) -> str:
    """Every model at every fraction; writes fractions.json, .csv and .md to `out`, and returns the last.

    Args:
        specs: models, as `features.extractor.load_extractor` reads them; the others are compared with the first.
        fractions: of the training labels, each above 0 and at most 1.
        baseline: folder of `dino-path baseline`, with `--fraction` for the fractions; what is missing is said.

    Raises:
        CheckpointError: a model cannot be loaded.
        DataError: a baseline is of another split, or there is none in the folder.
        TileStoreError: an image cannot be read.
    """
    division = divide(labelled, config)
    models, cache = load_models(specs, device), FeatureCache.create(out, config, device, num_workers)
    draws = {
        fraction: division.label_draws(fraction, config.fraction_draws, seed=config.seed) for fraction in fractions
    }
    supervised, title = _supervised(baseline, division, draws)
    cells = [
        Cell(title, "end-to-end", fraction, predicted_LM, _score(division, config, predicted_LM))
        for fraction, predicted_LM in supervised.items()
    ]
    missing = [fraction for fraction in fractions if fraction not in supervised]
    notes = _notes(division, config, draws, missing, title)
    notes += input_notes((extractor for _, extractor in models.values()), labelled.source, config.input_px)
    if baseline is not None and 1.0 in supervised:
        notes += read_supervised(baseline, division).notes
    for name, (_, extractor) in models.items():
        features_ND = cache.features(extractor, Images.of(labelled))
        for protocol in config.fraction_protocols:
            for fraction in fractions:
                predicted_LM, remarks = _predict(name, protocol, fraction, features_ND, draws[fraction], config)
                scores = _score(division, config, predicted_LM)
                cells.append(Cell(name, protocol, fraction, predicted_LM, scores))
                what = f"{name}, {TITLES[protocol]}, {_percent(fraction)}"
                logger.info("%s of the labels: balanced accuracy %s", what, scores["balanced_accuracy"])
                notes += remarks
    cells = [_with_differences(cell, cells, list(models), division, config) for cell in cells]
    text = _markdown(division.name, cells, list(models), title, fractions, notes)
    record = {
        "baseline": title,
        "labelled_images": {
            f"{fraction:g}": [split.counts()["train"] for drawn in of_fraction for split in drawn.splits]
            for fraction, of_fraction in draws.items()
        },
        "missing": {f"{fraction:g}": baseline_missing(fraction) for fraction in missing},
        "rows": [cell.record() for cell in cells],
        "notes": notes,
    }
    write_results(out, "fractions", division, config, models, record=record, csv_rows=_csv_rows(cells, missing),
                  text=text)  # fmt: skip
    return text


def _predict(
    name: str, protocol: FeatureProtocol, fraction: float, features_ND: Features, draws: Sequence[Division],
    config: EvaluationConfig,
) -> tuple[NDArray[np.int64], list[str]]:  # fmt: skip
    """Predictions (L, M) of one model, and what to note of its fits."""
    predicted, is_converged = [], []
    for drawn in draws:
        results = [run_protocol(protocol, features_ND, split, config) for split in drawn.splits]
        predicted.append(pooled([scores_NC.argmax(axis=1) for scores_NC, _ in results]))
        is_converged += [settings.get("has_converged") is not False for _, settings in results]
    what = f"{name}, {TITLES[protocol]}, {_percent(fraction)}"
    remarks = []
    if stopped := is_converged.count(False):
        remarks.append(f"{what}: {stopped} of {len(is_converged)} fits stopped before they converged")
    return np.stack(predicted), remarks


def _with_differences(
    cell: Cell, cells: Sequence[Cell], models: Sequence[str], division: Division, config: EvaluationConfig
) -> Cell:
    """The cell less the supervised network that saw the same labels, and the first model's less every other model."""
    others = [
        other for other in cells
        if other.fraction == cell.fraction and other.model != cell.model and cell.protocol != "end-to-end"
        and (other.protocol == "end-to-end" or (cell.model == models[0] and other.protocol == cell.protocol))
    ]  # fmt: skip
    differences = {other.model: _score(division, config, cell.predicted, other.predicted) for other in others}
    return replace(cell, differences=differences)


def _score(
    division: Division, config: EvaluationConfig, predicted_LM: NDArray[np.int64],
    other_LM: NDArray[np.int64] | None = None,
) -> dict[str, Score]:  # fmt: skip
    """Each metric's mean over the draws; less the other's where one is given. All draws have the same test images."""
    return mean_over_draws(
        division.labels, predicted_LM, other_LM, division.units(), num_classes=len(division.labelled.classes),
        num_bootstrap=config.num_bootstrap, seed=config.seed,
    )  # fmt: skip


def _supervised(
    baseline: Path | None, division: Division, draws: dict[float, list[Division]]
) -> tuple[dict[float, NDArray[np.int64]], str]:
    """Predictions (L, M) of the baselines that saw these draws, by fraction, and what to call them."""
    found = {fraction: read_draws(baseline, fraction, of_fraction) for fraction, of_fraction in draws.items()}
    known = {fraction: one for fraction, one in found.items() if one is not None}
    if baseline is not None and not known:
        refuse_missing(baseline, division)
    title = " / ".join(sorted({title for _, title in known.values()})) or SUPERVISED
    return {fraction: predicted_LM for fraction, (predicted_LM, _) in known.items()}, title


def _percent(fraction: float) -> str:
    return f"{100 * fraction:g} %"


def _notes(
    division: Division, config: EvaluationConfig, draws: dict[float, list[Division]], missing: Sequence[float],
    supervised: str,
) -> list[str]:  # fmt: skip
    units, labelled = division.units(), division.labelled
    notes = [
        f"balanced accuracy; in brackets: 95 % interval over {units.count} test {units.name} and over the "
        f"draws of the labelled images ({config.fraction_draws} below 100 %); split: {labelled.split_rule}",
        *division.notes(),
        f"a fraction is of the training images of each class, at least one; {labelled.unit_name} are labelled one by "
        "one in random order until a class has enough; all models see the same draws",
        *labelled.notes,
    ]
    for fraction, of_fraction in draws.items():
        counts = of_fraction[0].splits[0].counts()["train"]
        where = "" if division.num_folds is None else "in the first fold "
        notes.append(f"{_percent(fraction)}: {where}{sum(counts.values())} labelled images, {min(counts.values())} to "
                     f"{max(counts.values())} per class")  # fmt: skip
    if missing:
        at = ", ".join(map(_percent, missing))
        notes.append(f"{supervised} at {at}: missing; without it nothing shows what labels alone achieve")
    return notes


def _markdown(
    name: str, cells: Sequence[Cell], models: Sequence[str], supervised: str, fractions: Sequence[float],
    notes: Sequence[str],
) -> str:  # fmt: skip
    """For each protocol one line per fraction: the models, the supervised network, and the differences."""
    found = {(cell.model, cell.protocol, cell.fraction): cell for cell in cells}
    pairs = [(models[0], model) for model in models[1:]]
    if any(cell.model == supervised for cell in cells):
        pairs += [(model, supervised) for model in models]
    lines = []
    for protocol in dict.fromkeys(cell.protocol for cell in cells if cell.protocol != "end-to-end"):
        rows = []
        for fraction in fractions:
            row = [str(found[model, protocol, fraction].scores["balanced_accuracy"]) for model in models]
            end_to_end = found.get((supervised, "end-to-end", fraction))
            row.append(
                baseline_missing(fraction) if end_to_end is None else str(end_to_end.scores["balanced_accuracy"])
            )
            for model, other in pairs:
                difference = found[model, protocol, fraction].differences.get(other)
                row.append("" if difference is None else str(difference["balanced_accuracy"]))
            rows.append([_percent(fraction), *row])
        header = ["labels", *models, supervised, *(f"{model} - {other}" for model, other in pairs)]
        lines += [f"## {TITLES[protocol]}", "", *markdown_table(header, rows), ""]
    return markdown_page(f"{name}, label fractions", lines[:-1], notes)


def _csv_rows(cells: Sequence[Cell], missing: Sequence[float]) -> Iterator[Sequence[object]]:
    yield "model", "minus", "protocol", "fraction", "num_draws", "metric", "value", "low", "high"
    for cell in cells:
        for other, scores in {"": cell.scores, **cell.differences}.items():
            for metric, one in scores.items():
                yield cell.model, other, cell.protocol, cell.fraction, len(cell.predicted), metric, *one.decimals()
    for fraction in missing:
        yield SUPERVISED, "", "end-to-end", fraction, "", baseline_missing(fraction), "", "", ""
