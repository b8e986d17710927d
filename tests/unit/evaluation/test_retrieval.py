"""Retrieval against scikit-learn and plain loops, by simulation, and as a user calls it."""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity
from typer.testing import CliRunner

from dino_path.cli import app
from dino_path.errors import DataError
from dino_path.evaluation.labelled.datasets import LabelledSet
from dino_path.evaluation.labelled.division import Division
from dino_path.evaluation.labelled.queries import queries_of
from dino_path.evaluation.measures.means import class_means, mean_score
from dino_path.evaluation.measures.sample import Units
from dino_path.evaluation.protocols.retrieval import (
    NONE,
    NUM_NEIGHBOURS,
    majority,
    retrieve,
    scores_of_queries,
    units_among,
)
from dino_path.evaluation.results.neighbour_sheet import drawn_queries
from dino_path.records.retrieval import RETRIEVAL


def made_up(labels, patients, is_test=None, kind="patient"):
    """A set of which only what retrieval reads is real."""
    labels, patients = np.asarray(labels, np.int64), np.asarray(patients, np.int64)
    is_test = np.ones(len(labels), bool) if is_test is None else is_test
    return LabelledSet(
        name="made up", source=SimpleNamespace(mpp=None), labels=labels,
        classes=tuple(f"class{number}" for number in range(labels.max() + 1)),
        groups=patients.astype(str), group_kind=kind, units=patients, unit_name=f"{kind}s",
        split=np.where(is_test, "test", "train"), split_rule="", notes=(),
        content=np.array([f"{number:032d}" for number in range(len(labels))], np.bytes_), split_digest="",
    )  # fmt: skip


@pytest.fixture
def tissue():
    """300 images of 3 classes of unequal size, of 30 patients; a third is tested."""
    rng = np.random.default_rng(0)
    labels, patients = rng.choice(3, 300, p=[0.6, 0.3, 0.1]), np.arange(300) // 10
    return made_up(labels, patients, patients % 3 == 0)


def features_of(labelled, *, of_class=1.0, of_patient=0.5, num_features=16):
    rng = np.random.default_rng(1)
    return (
        of_class * rng.normal(size=(3, num_features))[labelled.labels]
        + of_patient * rng.normal(size=(30, num_features))[labelled.units]
        + rng.normal(size=(len(labelled.labels), num_features))
    ).astype(np.float32)


def searched(features, labelled, kind="flat"):
    queries = queries_of(Division(labelled, (labelled,)))
    retrieved = retrieve(features, labelled, queries, kind, seed=0)
    return queries, retrieved, scores_of_queries(retrieved, labelled, queries)


def test_each_query_agrees_with_scikit_learn_and_a_plain_loop(tissue):
    features = features_of(tissue)
    queries, retrieved, scores = searched(features, tissue)
    assert (queries.number == tissue.part("test")).all()
    similarity = cosine_similarity(features.astype(np.float64))
    for place, query in enumerate(queries.number):
        others = np.flatnonzero(tissue.units != tissue.units[query])
        right = tissue.labels[others] == tissue.labels[query]
        wanted = average_precision_score(right, similarity[query, others])
        assert scores["mAP"][place] == pytest.approx(wanted, abs=1e-6)
        nearest = others[np.argsort(-similarity[query, others])][:NUM_NEIGHBOURS]
        assert retrieved.neighbours[place].tolist() == nearest.tolist()
        for k in (1, 3, 5, 10):  # a Counter counts equal numbers in the order in which they came
            voted = Counter(tissue.labels[nearest[:k]].tolist()).most_common(1)[0][0]
            assert scores[f"mMV@{k}"][place] == (voted == tissue.labels[query])
        hits = (tissue.labels[nearest[:5]] == tissue.labels[query]).tolist()
        shares = [np.mean(hits[: rank + 1]) for rank in range(5) if hits[rank]]
        assert scores["mAP@5"][place] == pytest.approx(sum(shares) / 5)


def test_an_image_never_finds_its_own_patient(tissue):
    queries, retrieved, _ = searched(features_of(tissue, of_class=0, of_patient=5), tissue)
    assert (tissue.units[retrieved.neighbours] != tissue.units[queries.number][:, None]).all()


def test_features_of_the_class_find_it_and_noise_is_at_chance(tissue):
    *_, good = searched(features_of(tissue, of_class=20, of_patient=0), tissue)
    assert all(values.min() == 1 for values in good.values())
    queries, _, noise = searched(features_of(tissue, of_class=0, of_patient=0), tissue)
    chance = (queries.num_right / queries.num_others).mean()
    assert noise["mMV@1"].mean() == pytest.approx(chance, abs=0.15)
    assert noise["mAP"].mean() == pytest.approx(chance, abs=0.05)


def test_equal_features_find_what_chance_finds_whatever_the_order_of_the_files():
    labelled = made_up(np.repeat([0, 1], 200), np.tile(np.arange(40), 10))  # all of one class come first
    queries, _, scores = searched(np.ones((400, 4), np.float32), labelled)
    for label in (0, 1):
        assert scores["mAP"][labelled.labels[queries.number] == label].mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ([2, 1, 1, 2], 2),  # two of each: the nearest decides
        ([0, 1, 1, 2], 1),
        ([0, 1, 2], 0),
        ([1, NONE, NONE], 1),
        ([2, 0, 0, 1, 1], 0),
    ],
)
def test_most_votes_win_and_of_equally_many_the_nearest(found, wanted):
    assert majority(np.array([found]), 3).tolist() == [wanted]


def test_neighbours_come_from_so_many_patients():
    neighbours = np.array([[0, 1, 2, 3], [3, 2, 3, 2], [0, NONE, NONE, NONE]])
    assert units_among(neighbours, np.array([7, 7, 0, 5])).tolist() == [3, 2, 1]


def test_fewer_images_of_other_patients_than_neighbours_all_vote():
    labelled = made_up([0, 0, 0, 1, 1], [0, 1, 2, 3, 4])
    _, retrieved, scores = searched(np.eye(5, dtype=np.float32) + np.float32(0.1), labelled)
    assert (retrieved.neighbours == NONE).sum(axis=1).tolist() == [NUM_NEIGHBOURS - 4] * 5
    assert scores["mAP@10"].max() <= 1


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_passes_over_the_own_patient_and_tells_its_recall(tissue, kind):
    features = features_of(tissue, of_patient=3)
    queries, retrieved, scores = searched(features, tissue, kind)
    assert (tissue.units[retrieved.neighbours] != tissue.units[queries.number][:, None]).all()
    exact = searched(features, tissue)[1]
    same = [len(np.intersect1d(a, b)) for a, b in zip(retrieved.neighbours, exact.neighbours, strict=True)]
    assert retrieved.recall == pytest.approx(np.mean(same) / NUM_NEIGHBOURS)
    assert "mAP" not in scores


def test_a_class_of_one_patient_does_not_search_and_without_any_other_patient_nothing_does():
    labelled = made_up([0, 0, 1, 1, 1], [0, 1, 2, 2, 2])
    queries = queries_of(Division(labelled, (labelled,)))
    assert queries.number.tolist() == [0, 1]
    assert queries.left_out == {"class1": 3}
    alone = made_up([0, 1, 0, 1], [0, 0, 0, 0])
    with pytest.raises(DataError, match="no test image has another of the patients with its class"):
        queries_of(Division(alone, (alone,)))


def test_the_means_over_images_and_classes_are_plain_means(tissue):
    rng = np.random.default_rng(2)
    values, labels, units = rng.random(300), tissue.labels, Units("patients", tissue.units)
    means = class_means(values, labels, 3, units, num_bootstrap=200, seed=0)
    of_class = [values[labels == label].mean() for label in range(3)]
    assert [one.value for one in means.by_class] == pytest.approx(of_class)
    assert means.balanced.value == pytest.approx(np.mean(of_class))
    overall, known = means.overall.score(), mean_score(values, units, num_bootstrap=200, seed=0)
    assert (overall.value, overall.low, overall.high) == pytest.approx((known.value, known.low, known.high))


def test_intervals_over_patients_cover_the_truth_of_the_balanced_mean():
    rng = np.random.default_rng(3)
    patient, labels, covered = np.repeat(np.arange(20), 15), np.tile(np.arange(3), 100), 0
    for _ in range(200):
        chance = np.clip(np.array([0.8, 0.6, 0.4])[labels] + rng.normal(0, 0.1, 20)[patient], 0, 1)
        values = (rng.random(300) < chance).astype(float)
        score = class_means(values, labels, 3, Units("patients", patient), num_bootstrap=1, seed=0).balanced.score()
        covered += score.low <= 0.6 <= score.high
    assert covered >= 180


def test_the_picture_shows_every_class_and_different_patients(tissue):
    queries = queries_of(Division(tissue, (tissue,)))
    shown = drawn_queries(tissue, queries, 9, seed=0)
    labels = tissue.labels[queries.number[shown]]
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for label in range(3):
        assert len(set(tissue.units[queries.number[shown]][labels == label])) == 3
    assert len(drawn_queries(tissue, queries, 2, seed=0)) == 2


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    logger = logging.getLogger("dino_path")
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


def evaluate(*words):
    settings = ("evaluation.num_bootstrap=100", "--device", "cpu", "--workers", "0")
    result = CliRunner().invoke(app, ["evaluate", "retrieval", *map(str, words), *settings])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def test_the_command_leaves_page_record_table_and_picture(class_folders, tmp_path):
    rows = [
        f"{file.relative_to(class_folders)},p{number % 6}"
        for number, file in enumerate(sorted(class_folders.rglob("*.png")))
    ]
    (class_folders / "groups.csv").write_text("path,patient_id\n" + "\n".join(rows) + "\n")
    out = tmp_path / "out"
    words = ("mean-colour", "colour-statistics", "--data", class_folders, "--out", out, "evaluation.cross_validation=3")
    shown = evaluate(*words)
    record = RETRIEVAL.read(out / "retrieval.json")
    assert record.units == "patients"
    assert record.num_queries == {"blood": 12, "leaf": 12, "sea": 12}
    first, second = record.rows
    assert first.balanced["mMV@5"].value == 1  # the classes are three colours
    assert first.differences.keys() == {"colour-statistics"}
    assert second.differences == {}
    assert "36 images of 6 patients are queries" in shown
    with Image.open(out / "neighbours.jpg") as sheet:
        assert sheet.width > 1600
    lines = (out / "retrieval.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 7 * 5 + 7  # of two models 7 measures of 2 + 3 means, and a difference of 7
    assert json.loads(evaluate(*words, "--json"))["rows"][0]["model"] == "mean-colour"
    with pytest.raises(DataError, match="the model mean-colour is left out"):
        evaluate("colour-statistics", "--data", class_folders, "--out", out, "evaluation.cross_validation=3")


def test_without_patients_the_page_warns(class_folders, tmp_path):
    shown = evaluate("mean-colour", "--data", class_folders, "--out", tmp_path / "out")
    assert "no patient or slide is known" in shown
    assert "may be too high" in shown
