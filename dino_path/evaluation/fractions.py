"""How much the features are worth when few labels are known: Table 10 of the DINO paper (Caron et al. 2021).

Logistic regression and k-NN at several fractions of the training labels, every model on the same draws, beside the
supervised network that saw the same labels. Logistic regression is UNI's, whose strength needs no validation images:
at 1 % there are none to spare.

Shape suffixes: N test images, L draws of the labelled images.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dino_path.config import EvaluationConfig, FeatureProtocol
from dino_path.evaluation.baseline_files import BaselineFolder
from dino_path.evaluation.cache import FeatureCache, Features, Images, load_models
from dino_path.evaluation.datasets import LabelledSet
from dino_path.evaluation.metrics import Score, mean_over_draws
from dino_path.evaluation.protocols import TITLES, run_protocol
from dino_path.evaluation.results import SUPERVISED, baseline_missing, markdown_page, markdown_table, write_results

logger = logging.getLogger(__name__)

FRACTION_PROTOCOLS: tuple[FeatureProtocol, ...] = ("linear-uni", "knn")


@dataclass(frozen=True)
class Cell:
    """One model under one protocol at one fraction of the labels.

    Attributes:
        predicted: (L, N) class numbers of the test images, one row per draw.
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
    models, cache = load_models(specs, device), FeatureCache.create(out, config, device, num_workers)
    draws = {
        fraction: labelled.label_draws(fraction, config.fraction_draws, seed=config.seed) for fraction in fractions
    }
    supervised, title = _supervised(baseline, draws)
    cells = [
        Cell(title, "end-to-end", fraction, predicted_LN, _score(labelled, config, predicted_LN))
        for fraction, predicted_LN in supervised.items()
    ]
    missing = [fraction for fraction in fractions if fraction not in supervised]
    notes = _notes(labelled, config, draws, missing, title)
    first: dict[tuple[str, float], Cell] = {}
    for name, (_, extractor) in models.items():
        features_ND = cache.features(extractor, Images.of(labelled))
        for protocol in FRACTION_PROTOCOLS:
            for fraction in fractions:
                others = {title: supervised[fraction]} if fraction in supervised else {}
                if (protocol, fraction) in first:
                    others[first[protocol, fraction].model] = first[protocol, fraction].predicted
                cell, unfinished = _cell(name, protocol, fraction, features_ND, draws[fraction], config, others)
                first.setdefault((protocol, fraction), cell)
                cells.append(cell)
                notes += unfinished
    text = _markdown(labelled.name, cells, list(models), title, fractions, notes)
    record = {
        "format": "dino_path label fractions, 1",
        "baseline": title,
        "labelled_images": {f"{fraction:g}": [one.counts()["train"] for one in draws[fraction]] for fraction in draws},
        "missing": {f"{fraction:g}": baseline_missing(fraction) for fraction in missing},
        "rows": [cell.record() for cell in cells],
        "notes": notes,
    }
    write_results(out, "fractions", labelled, config, models, record=record, csv_rows=_csv_rows(cells, missing),
                  text=text)  # fmt: skip
    return text


def _cell(
    name: str, protocol: FeatureProtocol, fraction: float, features_ND: Features, draws: Sequence[LabelledSet],
    config: EvaluationConfig, others: Mapping[str, NDArray[np.int64]],
) -> tuple[Cell, list[str]]:  # fmt: skip
    """The cell, and a note where fits did not converge.

    Args:
        others: predictions (L, N) of what it is compared with.
    """
    results = [run_protocol(protocol, features_ND, drawn, config) for drawn in draws]
    predicted_LN = np.stack([scores_NC.argmax(axis=1) for scores_NC, _ in results])
    differences = {other: _score(draws[0], config, predicted_LN, other_LN) for other, other_LN in others.items()}
    cell = Cell(name, protocol, fraction, predicted_LN, _score(draws[0], config, predicted_LN), differences)
    what = f"{name}, {TITLES[protocol]}, {_percent(fraction)}"
    logger.info("%s of the labels: balanced accuracy %s", what, cell.scores["balanced_accuracy"])
    stopped = sum(settings.get("has_converged") is False for _, settings in results)
    return cell, [f"{what}: {stopped} of {len(results)} fits stopped before they converged"] if stopped else []


def _score(
    labelled: LabelledSet, config: EvaluationConfig, predicted_LN: NDArray[np.int64],
    other_LN: NDArray[np.int64] | None = None,
) -> dict[str, Score]:  # fmt: skip
    """Each metric's mean over the draws; less the other's where one is given. All draws have the same test images."""
    return mean_over_draws(
        labelled.labels[labelled.part("test")], predicted_LN, other_LN, labelled.test_units(),
        num_classes=len(labelled.classes), num_bootstrap=config.num_bootstrap, seed=config.seed,
    )  # fmt: skip


def _supervised(
    baseline: Path | None, draws: dict[float, list[LabelledSet]]
) -> tuple[dict[float, NDArray[np.int64]], str]:
    """Predictions (L, N) of the baselines that saw these draws, by fraction, and what to call them."""
    if baseline is None:
        return {}, SUPERVISED
    predictions, titles = {}, set()
    for fraction, of_fraction in draws.items():
        folders = [BaselineFolder(baseline).of_draw(fraction, number) for number in range(len(of_fraction))]
        if all(folder.is_finished() for folder in folders):
            scores = [folder.read_scores(drawn) for folder, drawn in zip(folders, of_fraction, strict=True)]
            predictions[fraction] = np.stack([scores_NC.argmax(axis=1) for scores_NC in scores])
            titles |= {folder.title() for folder in folders}
    if not predictions:
        BaselineFolder(baseline).read_result()  # refuses a folder that is no baseline at all
    return predictions, " / ".join(sorted(titles)) or SUPERVISED


def _percent(fraction: float) -> str:
    return f"{100 * fraction:g} %"


def _notes(
    labelled: LabelledSet, config: EvaluationConfig, draws: dict[float, list[LabelledSet]], missing: Sequence[float],
    supervised: str,
) -> list[str]:  # fmt: skip
    units = labelled.test_units()
    notes = [
        f"balanced accuracy; in brackets: 95 % bootstrap interval over {units.count} test {units.name} and over the "
        f"draws of the labelled images ({config.fraction_draws} below 100 %); split: {labelled.split_rule}",
        f"a fraction is of the training images of each class, at least one; {labelled.unit_name} are labelled one by "
        "one in random order until a class has enough; all models see the same draws",
        *labelled.notes,
    ]
    for fraction, of_fraction in draws.items():
        counts = of_fraction[0].counts()["train"]
        notes.append(f"{_percent(fraction)}: {sum(counts.values())} labelled images, {min(counts.values())} to "
                     f"{max(counts.values())} per class")  # fmt: skip
    if missing:
        at = ", ".join(map(_percent, missing))
        notes.append(f"{supervised} at {at}: missing; without it no number there says what labels alone give")
    return notes


def _markdown(
    name: str, cells: Sequence[Cell], models: Sequence[str], supervised: str, fractions: Sequence[float],
    notes: Sequence[str],
) -> str:  # fmt: skip
    """For each protocol one line per fraction: the models, the supervised network, and the differences."""
    found = {(cell.model, cell.protocol, cell.fraction): cell for cell in cells}
    pairs = [(model, models[0]) for model in models[1:]]
    if any(cell.model == supervised for cell in cells):
        pairs += [(model, supervised) for model in models]
    lines = []
    for protocol in FRACTION_PROTOCOLS:
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
