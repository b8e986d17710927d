import json

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import normalize

from dino_path.config import BaselineConfig, EvaluationConfig
from dino_path.evaluation.baseline.training import train_baseline
from dino_path.evaluation.labelled.datasets import load_labelled
from dino_path.evaluation.results import fewshot
from dino_path.evaluation.results.fewshot import episodes_of, evaluate_fewshot, simple_shot

CPU = torch.device("cpu")
CONFIG = EvaluationConfig(num_bootstrap=100, num_episodes=100, shots=(1, 3, 50), input_px=32)


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    centres = 2 + rng.normal(size=(4, 12))  # features of networks lie off the origin
    labels = rng.permutation(np.arange(260) % 4)
    points = (centres[labels] + rng.normal(size=(260, 12))).astype(np.float32)
    return points[:200], labels[:200], points[200:], labels[200:]


def run(features, shots, *, num_episodes=40, seed=0):
    confusions = simple_shot(*features, num_classes=4, shots=shots, num_episodes=num_episodes, seed=seed)
    return episodes_of(shots, confusions)


def reference(train, labels, queries, query_labels, *, shots, num_episodes, seed):
    """One episode after the other in fp64, by distances, as the protocol is described."""
    rng = np.random.default_rng([seed, shots])
    train, queries = train.astype(np.float64), queries.astype(np.float64)
    scores = []
    for _ in range(num_episodes):
        support = [rng.choice(np.flatnonzero(labels == label), shots, replace=False) for label in range(4)]
        mean = train[np.concatenate(support)].mean(axis=0)
        classes = np.stack([normalize(train[of_class] - mean).mean(axis=0) for of_class in support])
        distance = np.linalg.norm(normalize(queries - mean)[:, None] - classes[None], axis=2)
        scores.append(balanced_accuracy_score(query_labels, distance.argmin(axis=1)))
    return np.array(scores)


@pytest.mark.parametrize("shots", [1, 5, 20])
def test_all_episodes_at_once_are_the_episodes_one_by_one(features, shots):
    result = run(features, shots)
    wanted = reference(*features, shots=shots, num_episodes=40, seed=0)
    assert result.mean["balanced_accuracy"] == pytest.approx(wanted.mean(), abs=1e-3)
    assert result.low["balanced_accuracy"] == pytest.approx(np.percentile(wanted, 2.5), abs=0.01)
    assert result.high["balanced_accuracy"] == pytest.approx(np.percentile(wanted, 97.5), abs=0.01)


def test_many_chunks_give_the_episodes_of_one(features, monkeypatch):
    whole = run(features, 5)
    monkeypatch.setattr(fewshot, "MAX_SCORES_PER_CHUNK", 1000)
    pieces = run(features, 5)
    assert pieces.mean["accuracy"] == pytest.approx(whole.mean["accuracy"], abs=1e-3)


def test_more_shots_are_better_and_less_a_matter_of_luck(features):
    one, many = run(features, 1), run(features, 30)
    assert many.mean["accuracy"] > one.mean["accuracy"]
    assert many.high["accuracy"] - many.low["accuracy"] < one.high["accuracy"] - one.low["accuracy"]


def test_a_common_shift_of_the_features_changes_nothing(features):
    train, labels, queries, query_labels = features
    moved = (train + 50, labels, queries + 50, query_labels)
    assert run(moved, 5).mean["accuracy"] == pytest.approx(run(features, 5).mean["accuracy"], abs=2e-3)


def evaluate(labelled, out, baseline=None):
    return evaluate_fewshot(
        ["mean-colour"], labelled, CONFIG, device=CPU, out=out, baseline=baseline, num_workers=0
    )  # fmt: skip


def test_the_files_say_what_was_done_and_that_the_baseline_is_missing(class_folders, tmp_path):
    labelled = load_labelled(str(class_folders), CONFIG)
    text = evaluate(labelled, tmp_path / "out")
    assert "| balanced accuracy | 1 per class | 3 per class |" in text
    assert "no episodes with [50] shots" in text
    assert "no group ids" in text
    record = json.loads((tmp_path / "out" / "fewshot.json").read_text())
    assert [(row["model"], row["shots"]) for row in record["rows"]] == [("mean-colour", 1), ("mean-colour", 3)]
    assert record["data"]["split_digest"] == labelled.split_digest
    for name in ("fewshot.md", "fewshot.csv", "fewshot.json"):
        assert "missing, run `dino-path baseline`" in (tmp_path / "out" / name).read_text()


def test_the_baseline_stands_below_the_episodes(class_folders, tmp_path):
    labelled = load_labelled(str(class_folders), CONFIG)
    config = BaselineConfig(backbone="resnet10t", num_epochs=1, batch_size=8, input_px=32)
    out = train_baseline(
        labelled, config, num_bootstrap=100, seed=0, out=tmp_path / "baseline", device=CPU, num_workers=1
    ).out
    text = evaluate(labelled, tmp_path / "out", out)
    supervised = "supervised resnet10t (from scratch, undertrained)"
    assert f"{supervised}, trained end to end on all 24 training images: balanced accuracy" in text
