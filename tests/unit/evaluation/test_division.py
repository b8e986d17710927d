import csv
import json

import numpy as np
import pytest
import torch

from dino_path.config import BaselineConfig, Config, EvaluationConfig
from dino_path.errors import DataError
from dino_path.evaluation.baseline.supervised import read_supervised, train_supervised, write_pooled
from dino_path.evaluation.labelled.datasets import load_labelled
from dino_path.evaluation.labelled.division import divide
from dino_path.evaluation.labelled.splits import draw_folds
from dino_path.evaluation.protocols.by_name import run_protocol
from dino_path.evaluation.results.fewshot import evaluate_fewshot
from dino_path.evaluation.results.fractions import evaluate_fractions
from dino_path.evaluation.results.table import evaluate_table

CPU = torch.device("cpu")
CONFIG = EvaluationConfig(num_bootstrap=100, input_px=32, cross_validation=3, linear_crops=1, num_episodes=100)


@pytest.fixture
def labelled(class_folders):
    """36 images of three classes; every patient has two images of each of two classes, so 9 patients."""
    rows = []
    for shift, name in enumerate(("blood", "leaf", "sea")):
        for index, path in enumerate(sorted((class_folders / name).glob("*.png"))):
            rows.append((path.relative_to(class_folders), name, f"p{(index // 2 + 3 * shift) % 9}"))
    with (class_folders / "groups.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "label", "patient_id"), *rows])
    return load_labelled(str(class_folders), CONFIG)


def deal(labels, units, folds, seed=0):
    classes = tuple(f"class{number}" for number in range(labels.max() + 1))
    return draw_folds(labels, units, folds, seed=[seed, 0], what="data", classes=classes, unit_name="patients")


def test_folds_tear_no_patient_apart_and_hold_their_share_of_every_class():
    rng = np.random.default_rng(0)
    units = np.repeat(np.arange(30), rng.integers(5, 40, 30))
    labels = (rng.random(len(units)) < rng.beta(1, 2, 30)[units]).astype(np.int64)
    fold = deal(labels, units, 5)
    assert all(len(set(fold[units == unit])) == 1 for unit in range(30))
    for label in (0, 1):
        shares = np.bincount(fold[labels == label]) / (labels == label).sum()
        assert shares == pytest.approx(np.full(5, 0.2), abs=0.06)
    assert (fold == deal(labels, units, 5)).all()
    assert (fold != deal(labels, units, 5, seed=1)).any()


def test_as_many_folds_as_patients_leave_one_patient_out():
    labels = np.array([0, 0, 0, 1, 1, 1])
    for seed in range(10):
        assert sorted(deal(labels, np.arange(6), 6, seed=seed)) == list(range(6))


def test_too_many_folds_and_classes_of_one_patient_are_refused():
    with pytest.raises(DataError, match="3 patients for 5 folds"):
        deal(np.array([0, 0, 1, 1]), np.array([0, 1, 2, 2]), 5)
    with pytest.raises(DataError, match="of class1 one"):
        deal(np.array([0, 0, 0, 1]), np.arange(4), 2)


def test_every_patient_is_tested_once_by_models_that_never_saw_it(labelled):
    division = divide(labelled, CONFIG)
    assert len(division.splits) == 3
    assert sorted(division.tested) == list(range(36))
    for split in division.splits:
        assert not set(split.groups[split.part("train")]) & set(split.groups[split.part("test")])
        assert set(split.labels[split.part("train")]) == {0, 1, 2}
    assert len({split.split_digest for split in (*division.splits, division.labelled)}) == 4


def test_repeats_draw_other_folds_and_count_each_patient_once(labelled):
    division = divide(labelled, CONFIG.model_copy(update={"cross_validation_repeats": 2}))
    assert len(division.splits) == 6
    assert np.bincount(division.tested).tolist() == [2] * 36
    assert division.units().count == 9
    assert division.splits[0].split_digest != division.splits[3].split_digest
    assert "tested 2 times" in division.notes()[0]


def test_what_is_chosen_depends_on_no_test_label(labelled):
    """With test labels changed, predictions stay, of every protocol."""
    features = np.random.default_rng(0).normal(size=(36, 5)).astype(np.float32)
    for split in divide(labelled, CONFIG).splits:
        test = split.part("test")
        for protocol in ("knn", "knn-uni", "linear", "logistic", "linear-uni"):
            scores, _ = run_protocol(protocol, features, split, CONFIG)
            split.labels[test] = (split.labels[test] + 1) % 3
            again, _ = run_protocol(protocol, features, split, CONFIG)
            split.labels[test] = (split.labels[test] + 2) % 3
            assert (scores == again).all()


def test_a_given_split_is_not_drawn_anew(labelled, tmp_path):
    labelled.write_split(tmp_path / "split.csv")
    given = load_labelled(str(tmp_path / "split.csv"), CONFIG)
    with pytest.raises(DataError, match=r"evaluation\.cross_validation=3 asks for another"):
        divide(given, CONFIG)


def test_few_tested_patients_suggest_a_cross_validation(labelled):
    (note,) = divide(labelled, EvaluationConfig()).notes()
    assert "patients are tested: with evaluation.cross_validation=5 each of the 9 is tested once" in note


def test_every_protocol_is_cross_validated_and_says_so(labelled, tmp_path):
    protocols = ("knn", "knn-uni", "linear", "logistic", "linear-uni", "linear-dino")
    table = evaluate_table(
        ["mean-colour"], labelled, CONFIG, device=CPU, out=tmp_path, protocols=protocols, baseline=None, num_workers=0
    )
    assert [row.protocol for row in table.rows] == list(protocols)
    assert all(row.metrics.num_images == 36 and row.metrics.num_units == 9 for row in table.rows)
    assert table.rows[0].metrics.accuracy.value == 1.0  # the classes are colours
    assert table.markdown().startswith("# data, 3-fold cross-validation by patients\n")
    assert "each of the patients is tested once" in table.markdown()
    record = json.loads((tmp_path / "results.json").read_text())
    folds = record["data"]["cross_validation"]
    assert folds["folds"] == 3
    assert len({split["split_digest"] for split in folds["splits"]}) == 3
    assert sum(split["num_images"]["test"]["blood"] for split in folds["splits"]) == 12
    knn = record["rows"][0]
    assert knn["settings"]["by_k"]["20"]["accuracy"] == knn["metrics"]["accuracy"]["value"]
    assert not (tmp_path / "split.csv").exists()
    with (tmp_path / "folds.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["fold_of_repeat_1"] for row in rows} == {"1", "2", "3"}


def test_few_shots_and_fractions_are_cross_validated(labelled, tmp_path):
    common = {"device": CPU, "out": tmp_path, "baseline": None, "num_workers": 0}
    text = evaluate_fewshot(["mean-colour"], labelled, CONFIG.model_copy(update={"shots": (5,)}), **common)
    assert "test images: 36" in text
    assert "few-shot" in text.splitlines()[0]
    text = evaluate_fractions(["mean-colour"], labelled, CONFIG, [1.0, 0.5], **common)
    assert "over 9 test patients" in text
    record = json.loads((tmp_path / "fractions.json").read_text())
    assert len(record["labelled_images"]["0.5"]) == 15  # five draws in three folds
    assert len(record["data"]["cross_validation"]["splits"]) == 3


def test_baselines_of_all_folds_are_trained_once_and_pooled(labelled, tmp_path):
    division = divide(labelled, CONFIG)
    config = Config(
        evaluation=CONFIG, baseline=BaselineConfig(backbone="resnet10t", num_epochs=1, batch_size=8, input_px=32)
    )
    common = {"fraction": 1.0, "out": tmp_path / "base", "device": CPU, "num_workers": 1}
    results = list(train_supervised(division, config, **common))
    assert [result.out.relative_to(tmp_path).as_posix() for result in results] == [
        f"base/repeat_1/fold_{fold}" for fold in (1, 2, 3)
    ]
    metrics = write_pooled(division, config, tmp_path / "base")
    assert metrics.num_images == 36
    written = json.loads((tmp_path / "base" / "result.json").read_text())
    assert written["metrics"]["accuracy"]["value"] == metrics.accuracy.value
    before = (tmp_path / "base" / "repeat_1" / "fold_1" / "model.safetensors").stat().st_mtime_ns
    list(train_supervised(division, config, **common))  # finished: only read
    assert (tmp_path / "base" / "repeat_1" / "fold_1" / "model.safetensors").stat().st_mtime_ns == before
    table = evaluate_table(
        ["mean-colour"], labelled, CONFIG, device=CPU, out=tmp_path, protocols=["knn"], baseline=tmp_path / "base",
        num_workers=0,
    )  # fmt: skip
    assert table.rows[-1].metrics.accuracy == metrics.accuracy
    assert "undertrained" in table.baseline
    assert "in 3 of 3 folds" in " ".join(table.notes)
    other = divide(labelled, CONFIG.model_copy(update={"seed": 1}))
    with pytest.raises(DataError, match="tested on another split"):
        read_supervised(tmp_path / "base", other)
