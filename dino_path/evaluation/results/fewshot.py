"""Few-shot episodes: how far a handful of labelled images per class goes with frozen features.

Shape suffixes: N training images, Q queries, D features, C classes, S shots, E episodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dino_path.config import EvaluationConfig
from dino_path.evaluation.baseline.supervised import Supervised, read_supervised
from dino_path.evaluation.labelled.datasets import LabelledSet
from dino_path.evaluation.labelled.division import Division, divide
from dino_path.evaluation.measures.confusion import Ints, confusion_matrix, summarise
from dino_path.evaluation.measures.sample import LOWER, UPPER
from dino_path.evaluation.protocols.cache import FeatureCache, Features, Images, load_models
from dino_path.evaluation.results.input_notes import input_notes
from dino_path.evaluation.results.writing import (
    SUPERVISED,
    baseline_missing,
    markdown_page,
    markdown_table,
    write_results,
)

MAX_SCORES_PER_CHUNK = 2**24
METRICS = ("accuracy", "balanced_accuracy")


@dataclass(frozen=True)
class Episodes:
    """Results over episodes: the mean, and the range that holds 95 % of the episodes.

    The range shows how much depends on which images were labelled; the test images are always the same.
    """

    shots: int
    mean: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]

    def text(self, metric: str) -> str:
        return f"{self.mean[metric]:.3f} ({self.low[metric]:.3f}-{self.high[metric]:.3f})"


def simple_shot(
    train_ND: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    query_QD: NDArray[np.float32],
    query_labels_Q: NDArray[np.int64],
    *,
    num_classes: int,
    shots: int,
    num_episodes: int,
    seed: int,
) -> Ints:
    """Confusion matrices (E, C, C) of SimpleShot over many draws of `shots` training images of every class.

    All queries are classified in each.

    Features are centred by the mean of the episode's support images and brought to length 1; a class is the mean of its
    support features, and a query belongs to the nearest class (Euclidean). Source: Wang et al. 2019 (CL2N), as in Chen
    et al. 2024 (UNI), mahmoodlab/UNI `fewshot.py`. Every class needs `shots` training images.
    """
    # Centring undoes any shift; taking the common mean out beforehand keeps the differences below exact in fp32.
    origin_D = train_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
    train_ND, query_QD = train_ND - origin_D, query_QD - origin_D
    query_square_Q1 = (query_QD**2).sum(axis=1, keepdims=True)
    members = [np.flatnonzero(labels_N == label) for label in range(num_classes)]
    rng = np.random.default_rng([seed, shots])
    chunk = max(1, MAX_SCORES_PER_CHUNK // max(len(query_QD) * num_classes, num_classes * shots * train_ND.shape[1]))
    confusions = []
    for start in range(0, num_episodes, chunk):
        support_ECS = np.stack(
            [
                np.stack([rng.choice(of_class, shots, replace=False) for of_class in members])
                for _ in range(min(chunk, num_episodes - start))
            ]
        )
        support_ECSD = train_ND[support_ECS]
        mean_ED = support_ECSD.mean(axis=(1, 2))
        centred_ECSD = support_ECSD - mean_ED[:, None, None]
        centred_ECSD /= np.maximum(np.linalg.norm(centred_ECSD, axis=3, keepdims=True), 1e-12)
        class_ECD = centred_ECSD.mean(axis=2)
        # |q - c|^2 of the centred, normalised query q differs between classes only in |c|^2 / 2 - q c.
        mean_dot_QE = query_QD @ mean_ED.T
        length_QE = np.sqrt(np.maximum(query_square_Q1 - 2 * mean_dot_QE + (mean_ED**2).sum(axis=1), 1e-24))
        dot_QEC = (query_QD @ class_ECD.reshape(-1, class_ECD.shape[2]).T).reshape(len(query_QD), -1, num_classes)
        dot_QEC -= np.einsum("ED,ECD->EC", mean_ED, class_ECD)
        dot_QEC /= length_QE[:, :, None]
        dot_QEC -= (class_ECD**2).sum(axis=2) / 2
        confusions += [
            confusion_matrix(query_labels_Q, predicted_Q, num_classes) for predicted_Q in dot_QEC.argmax(axis=2).T
        ]
    return np.stack(confusions)


def episodes_of(shots: int, confusion_ECC: Ints) -> Episodes:
    """Mean and range of the episodes' results."""
    values = {name: value for name, value in summarise(confusion_ECC).items() if name in METRICS}
    low, high = ({n: float(np.percentile(v, end)) for n, v in values.items()} for end in (LOWER, UPPER))
    return Episodes(shots, {name: float(value.mean()) for name, value in values.items()}, low, high)


def evaluate_fewshot(
    specs: Sequence[str],
    labelled: LabelledSet,
    config: EvaluationConfig,
    *,
    device: torch.device,
    out: Path,
    baseline: Path | None,
    num_workers: int,
) -> str:
    """Episodes for every model and every number of shots; writes fewshot.json, .csv and .md, and returns the last.

    Args:
        specs: models, as `features.extractor.load_extractor` reads them.
        baseline: folder of `dino-path baseline` on the same split; None: the text says that it is missing.

    Raises:
        CheckpointError: a model cannot be loaded.
        DataError: the baseline is of another split.
        TileStoreError: an image cannot be read.
    """
    division = divide(labelled, config)
    supervised = None if baseline is None else read_supervised(baseline, division)
    models, cache = load_models(specs, device), FeatureCache.create(out, config, device, num_workers)
    num_classes = len(labelled.classes)
    train_counts = [np.bincount(s.labels[s.part("train")], minlength=num_classes).min() for s in division.splits]
    smallest = int(min(train_counts))
    shots = [number for number in config.shots if number <= smallest]
    notes = [
        f"SimpleShot, {config.num_episodes} episodes; in brackets: the range of 95 % of the episodes, which differ"
        f" in the labelled images; test images: {len(np.unique(division.tested))}, always the same; "
        f"split: {division.labelled.split_rule}",
        *division.notes(),
        *labelled.notes,
    ]
    if left_out := [number for number in config.shots if number > smallest]:
        notes.append(f"the smallest class has {smallest} training images: no episodes with {left_out} shots")
    results: dict[str, list[Episodes]] = {}
    for name, (_, extractor) in models.items():
        features_ND = cache.features(extractor, Images.of(labelled))
        results[name] = [_episodes(features_ND, division, number, config) for number in shots]
    title = SUPERVISED if supervised is None else supervised.title
    found = _supervised(supervised, division, num_classes)
    how_many = "all training images" if division.num_folds else f"all {len(labelled.part('train'))} training images"
    notes.append(f"{title}, trained end to end on {how_many}: {found}")
    notes += supervised.notes if supervised else ()
    notes += input_notes((extractor for _, extractor in models.values()), labelled.source, config.input_px)
    lines = markdown_table(
        ["balanced accuracy", *(f"{number} per class" for number in shots)],
        [[name, *(e.text("balanced_accuracy") for e in rows)] for name, rows in results.items()],
    )
    text = markdown_page(f"{division.name}, few-shot", lines, notes)
    record = {
        "baseline": f"{title}: {found}",
        "rows": [{"model": name, **asdict(episodes)} for name, rows in results.items() for episodes in rows],
        "notes": notes,
    }
    csv_rows = [*_csv_rows(results), [title, "all", "balanced_accuracy", found, "", ""]]
    write_results(out, "fewshot", division, config, models, record=record, csv_rows=csv_rows, text=text)
    return text


def _csv_rows(results: Mapping[str, Sequence[Episodes]]) -> Iterator[Sequence[object]]:
    yield "model", "shots", "metric", "mean", "low", "high"
    for name, rows in results.items():
        for e in rows:
            for metric in METRICS:
                yield name, e.shots, metric, *(f"{v[metric]:.6f}" for v in (e.mean, e.low, e.high))


def _episodes(features_ND: Features, division: Division, shots: int, config: EvaluationConfig) -> Episodes:
    """The episodes of one model; in a cross-validation an episode draws in each fold, and its folds are pooled."""
    of_splits = [
        simple_shot(
            features_ND[split.part("train")], split.labels[split.part("train")], features_ND[split.part("test")],
            split.labels[split.part("test")], num_classes=len(split.classes), shots=shots,
            num_episodes=config.num_episodes, seed=config.seed,
        )
        for split in division.splits
    ]  # fmt: skip
    confusion_ECC: Ints = np.sum(of_splits, axis=0)
    return episodes_of(shots, confusion_ECC)


def _supervised(supervised: Supervised | None, division: Division, num_classes: int) -> str:
    if supervised is None:
        return baseline_missing()
    values = summarise(confusion_matrix(division.labels, supervised.scores.argmax(axis=1), num_classes))
    return f"balanced accuracy {float(values['balanced_accuracy']):.3f}"
