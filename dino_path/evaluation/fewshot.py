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
from dino_path.evaluation.baseline_files import BaselineFolder
from dino_path.evaluation.cache import FeatureCache, Images, load_models
from dino_path.evaluation.datasets import LabelledSet
from dino_path.evaluation.metrics import LOWER, UPPER, confusion_matrix, summarise
from dino_path.evaluation.results import SUPERVISED, baseline_missing, markdown_page, markdown_table, write_results

MAX_SCORES_PER_CHUNK = 2**24
METRICS = ("accuracy", "balanced_accuracy")


@dataclass(frozen=True)
class Episodes:
    """Results over episodes: the mean, and the range that holds 95 % of the episodes.

    The range tells how much depends on which images were labelled; the test images are always the same.
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
) -> Episodes:
    """SimpleShot over many draws of `shots` training images of every class; all queries are classified in each.

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
    results: dict[str, list[float]] = {name: [] for name in METRICS}
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
        for predicted_Q in dot_QEC.argmax(axis=2).T:
            values = summarise(confusion_matrix(query_labels_Q, predicted_Q, num_classes))
            for name in METRICS:
                results[name].append(float(values[name]))
    return Episodes(
        shots,
        mean={name: float(np.mean(values)) for name, values in results.items()},
        low={name: float(np.percentile(values, LOWER)) for name, values in results.items()},
        high={name: float(np.percentile(values, UPPER)) for name, values in results.items()},
    )


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
    baseline_scores = None if baseline is None else BaselineFolder(baseline).read_scores(labelled)
    models, cache = load_models(specs, device), FeatureCache.create(out, config, device, num_workers)
    train, test, labels = labelled.part("train"), labelled.part("test"), labelled.labels
    smallest = int(np.bincount(labels[train], minlength=len(labelled.classes)).min())
    shots = [number for number in config.shots if number <= smallest]
    notes = [
        f"SimpleShot, {config.num_episodes} episodes; in brackets: the range of 95 % of the episodes, which differ in "
        f"the labelled images; test images: {len(test)}, always the same; split: {labelled.split_rule}",
        *labelled.notes,
    ]
    if left_out := [number for number in config.shots if number > smallest]:
        notes.append(f"the smallest class has {smallest} training images: no episodes of {left_out} shots")
    results: dict[str, list[Episodes]] = {}
    for name, (_, extractor) in models.items():
        features_ND = cache.features(extractor, Images.of(labelled))
        results[name] = [
            simple_shot(
                features_ND[train], labels[train], features_ND[test], labels[test],
                num_classes=len(labelled.classes), shots=number, num_episodes=config.num_episodes, seed=config.seed,
            )
            for number in shots
        ]  # fmt: skip
    title = SUPERVISED if baseline is None else BaselineFolder(baseline).title()
    supervised = _supervised(baseline_scores, labels[test], len(labelled.classes))
    notes.append(f"{title}, trained end to end on all {len(train)} training images: {supervised}")
    lines = markdown_table(
        ["balanced accuracy", *(f"{number} per class" for number in shots)],
        [[name, *(e.text("balanced_accuracy") for e in rows)] for name, rows in results.items()],
    )
    text = markdown_page(f"{labelled.name}, few-shot", lines, notes)
    record = {
        "format": "dino_path few-shot evaluation, 1",
        "baseline": f"{title}: {supervised}",
        "rows": [{"model": name, **asdict(episodes)} for name, rows in results.items() for episodes in rows],
        "notes": notes,
    }
    csv_rows = [*_csv_rows(results), [title, "all", "balanced_accuracy", supervised, "", ""]]
    write_results(out, "fewshot", labelled, config, models, record=record, csv_rows=csv_rows, text=text)
    return text


def _csv_rows(results: Mapping[str, Sequence[Episodes]]) -> Iterator[Sequence[object]]:
    yield "model", "shots", "metric", "mean", "low", "high"
    for name, rows in results.items():
        for e in rows:
            for metric in METRICS:
                yield name, e.shots, metric, *(f"{v[metric]:.6f}" for v in (e.mean, e.low, e.high))


def _supervised(scores_NC: NDArray[np.float64] | None, labels_N: NDArray[np.int64], num_classes: int) -> str:
    if scores_NC is None:
        return baseline_missing()
    values = summarise(confusion_matrix(labels_N, scores_NC.argmax(axis=1), num_classes))
    return f"balanced accuracy {float(values['balanced_accuracy']):.3f}"
