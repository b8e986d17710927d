"""The supervised baselines of a division: one for each split and each draw of the labels, trained, and read back.

Shape suffixes: M tested images, C classes, L draws of the labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dino_path.config import Config
from dino_path.evaluation.baseline.files import BaselineFolder
from dino_path.evaluation.baseline.training import BaselineResult, train_baseline
from dino_path.evaluation.labelled.division import Division, pooled
from dino_path.evaluation.measures.metrics import Metrics, measure
from dino_path.records.baseline import POOLED_BASELINE, PooledBaselineRecord
from dino_path.records.environment import shared_environment
from dino_path.records.labelled import DataRecord, MetricsRecord


@dataclass(frozen=True)
class Supervised:
    """The baseline of a division.

    Attributes:
        title: what tables call it.
        scores: (M, C) class probabilities of the tested images, in the order of the division.
        settings: how it was trained, as plain values.
        notes: what to keep in mind, as sentences.
    """

    title: str
    scores: NDArray[np.float64]
    settings: dict[str, Any]
    notes: tuple[str, ...]


def train_supervised(
    division: Division, config: Config, *, fraction: float, out: Path, device: torch.device, num_workers: int
) -> Iterator[BaselineResult]:
    """Train a baseline for each draw of the labels and each split; those that are finished are only read.

    Raises as `train_baseline` does.
    """
    evaluation = config.evaluation
    for number, drawn in enumerate(division.label_draws(fraction, evaluation.fraction_draws, seed=evaluation.seed)):
        for split, path in zip(drawn.splits, drawn.folders(out), strict=True):
            yield train_baseline(
                split,
                config.baseline,
                num_bootstrap=evaluation.num_bootstrap,
                seed=evaluation.seed,
                out=BaselineFolder(path).of_draw(fraction, number).path,
                device=device,
                num_workers=num_workers,
            )


def write_pooled(division: Division, config: Config, out: Path) -> Metrics:
    """Measure the pooled predictions of all folds' baselines, and write them to `out`/result.json."""
    supervised = read_supervised(out, division)
    evaluation = config.evaluation
    metrics = measure(
        division.labels, supervised.scores.argmax(axis=1), supervised.scores, division.units(),
        num_bootstrap=evaluation.num_bootstrap, seed=evaluation.seed,
    )  # fmt: skip
    record = PooledBaselineRecord(
        metrics=MetricsRecord.model_validate(metrics.record(division.labelled.classes)),
        data=DataRecord.model_validate(division.record()),
        settings=supervised.settings,
        notes=supervised.notes,
        environment=shared_environment(),
    )
    POOLED_BASELINE.write(out / "result.json", record)
    return metrics


def read_supervised(baseline: Path, division: Division) -> Supervised:
    """The baseline trained on all labels of each split.

    Raises:
        DataError: a split has no baseline, or one of another split.
    """
    folders = [BaselineFolder(path) for path in division.folders(baseline)]
    scores_MC = pooled([folder.read_scores(split) for folder, split in zip(folders, division.splits, strict=True)])
    records = [folder.read_result() for folder in folders]
    keys = {"config", "seed", "input_px", "augmentation", "validation"}
    settings = records[0].model_dump(mode="json", include=keys)
    best = [record.best_epoch for record in records]
    settings["best_epoch"] = best[0] if division.num_folds is None else best
    return Supervised(common_title(folders), scores_MC, settings, undertrained_notes(folders))


def read_draws(
    baseline: Path | None, fraction: float, draws: Sequence[Division]
) -> tuple[NDArray[np.int64], str] | None:
    """Predictions (L, M) of the baselines that saw these draws of the labels, and their title; None: some are missing.

    Raises:
        DataError: one is of another split, or of other labels.
    """
    if baseline is None:
        return None
    folders = [
        [BaselineFolder(path).of_draw(fraction, number) for path in drawn.folders(baseline)]
        for number, drawn in enumerate(draws)
    ]
    if not all(folder.is_finished() for of_draw in folders for folder in of_draw):
        return None
    predicted = [
        pooled([f.read_scores(split).argmax(axis=1) for f, split in zip(of_draw, drawn.splits, strict=True)])
        for of_draw, drawn in zip(folders, draws, strict=True)
    ]
    return np.stack(predicted), common_title([folder for of_draw in folders for folder in of_draw])


def refuse_missing(baseline: Path, division: Division) -> None:
    """Raises:
    DataError: the folder holds no baseline of this division at all.
    """
    BaselineFolder(division.folders(baseline)[0]).read_result()


def common_title(folders: Sequence[BaselineFolder]) -> str:
    """One title for several baselines: undertrained when one of them is."""
    titles = sorted({folder.title() for folder in folders}, key=lambda title: ("undertrained" not in title, title))
    kinds = {title.replace(", undertrained", ""): title for title in reversed(titles)}
    return " / ".join(kinds.values())


def undertrained_notes(folders: Sequence[BaselineFolder]) -> tuple[str, ...]:
    """A sentence where trainings ended at their last allowed epoch."""
    records = [record for folder in folders if (record := folder.read_result()).is_undertrained]
    if not records:
        return ()
    of_folds = f" in {len(records)} of {len(folders)} folds" if len(folders) > 1 else ""
    return (
        f"the supervised baseline stopped at its last allowed epoch, {len(records[0].history)}{of_folds}, while"
        f" validation was still improving (best epoch {records[0].best_epoch}): it is undertrained, which favours"
        f" the models compared with it; raise baseline.num_epochs",
    )
