import numpy as np
import pytest
from made_up_centres import cohort_of, made_up
from sklearn.metrics import adjusted_rand_score

from dino_path.evaluation.protocols import clustering
from dino_path.evaluation.protocols.clustering import adjusted_rand, clustering_score


@pytest.fixture(autouse=True)
def few_runs(monkeypatch):
    monkeypatch.setattr(clustering, "RUNS", 2)
    monkeypatch.setattr(clustering, "MAX_CLUSTERS", 6)
    monkeypatch.setattr(clustering, "MAX_PER_CELL", 40)


def score(features, cohort):
    return clustering_score(features, cohort, num_bootstrap=200, seed=0)


def test_the_adjusted_rand_index_is_scikit_learns():
    rng = np.random.default_rng(0)
    for _ in range(20):
        clusters, truth = rng.integers(0, 4, 50), rng.integers(0, 2, 50)
        table = np.zeros((4, 2), np.int64)
        np.add.at(table, (clusters, truth), 1)
        assert adjusted_rand(table) == pytest.approx(adjusted_rand_score(truth, clusters), abs=1e-12)
    assert adjusted_rand(np.array([[5, 0], [0, 3]])) == 1
    assert adjusted_rand(np.array([[5], [0]])) == 1


def test_clusters_of_tissue_are_above_0_and_clusters_of_centres_below():
    tissue = score(*made_up(of_class=4, of_maker=0, of_patient=0))
    centre = score(*made_up(of_class=0, of_maker=4, of_patient=0))
    assert tissue.score.score(lowest=-1).low > 0.5
    assert (tissue.num_combinations, tissue.of_maker) == (9, pytest.approx(0, abs=0.05))
    assert centre.score.score(lowest=-1).high < -0.5
    assert tissue.score.value == pytest.approx(tissue.of_class - tissue.of_maker)


def test_leaving_a_patient_out_is_the_index_of_the_others():
    features, cohort = made_up(num_images=160)
    square = np.flatnonzero((cohort.labels < 2) & (cohort.makers < 2))
    (_, _), without = clustering._score(clustering.unit_length(features), square, cohort, 0)
    clusters = [
        clustering.KMeans(
            clustering._num_clusters(clustering.unit_length(features)[square].astype(float), 0), init="random",
            n_init=clustering.STARTS, random_state=run,
        ).fit_predict(clustering.unit_length(features)[square].astype(float))
        for run in range(clustering.RUNS)
    ]  # fmt: skip
    patient = cohort.groups[square[0]]
    rest = cohort.groups[square] != patient
    truths = cohort.labels[square][rest], cohort.makers[square][rest]
    expected = [adjusted_rand_score(truths[0], c[rest]) - adjusted_rand_score(truths[1], c[rest]) for c in clusters]
    assert without[patient] == pytest.approx(np.mean(expected), abs=1e-9)


def test_classes_of_one_centre_each_have_no_score():
    features, cohort = made_up()
    assert score(features, cohort_of(cohort.makers, cohort.makers, cohort.groups)) is None


def test_a_cell_of_one_patient_has_no_interval():
    features, cohort = made_up(num_images=200)
    first = (cohort.labels == 0) & (cohort.makers == 0)
    patients = np.where(first, 99, cohort.groups)
    found = score(features, cohort_of(cohort.labels, cohort.makers, patients)).score.score(lowest=-1)
    assert np.isfinite(found.value)
    assert np.isnan(found.low)
