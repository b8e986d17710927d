"""Neighbours against a full sort, clusters against groups that are known."""

import numpy as np
import pytest

from dino_path.viewing.cohort import NUM_NEIGHBOURS, Cohort, cluster

STARTS = np.array([0, 30, 50, 60])
PATIENTS = ["P1", "P2", "P1"]


@pytest.fixture
def features_ND() -> np.ndarray:  # noqa: N802
    return np.random.default_rng(0).standard_normal((60, 5)).astype(np.float32)


@pytest.mark.parametrize("of_others", [False, True])
def test_neighbours_are_the_largest_cosines_of_the_whole_store(features_ND: np.ndarray, of_others: bool) -> None:
    cohort = Cohort(features_ND, STARTS, PATIENTS, 3)
    unit = features_ND.astype(np.float64) / np.linalg.norm(features_ND, axis=1, keepdims=True)
    groups = np.repeat(PATIENTS, np.diff(STARTS))
    for tile in (0, 29, 35, 59):
        candidates = [one for one in range(60) if one != tile and not (of_others and groups[one] == groups[tile])]
        expected = sorted(candidates, key=lambda one: -float(unit[one] @ unit[tile]))[:NUM_NEIGHBOURS]
        found = cohort.neighbours(tile, of_others=of_others)
        assert [one.tile for one in found] == expected
        assert [one.similarity for one in found] == pytest.approx(
            [unit[one] @ unit[tile] for one in expected], abs=1e-5
        )


def test_a_store_of_one_patient_has_no_other_neighbours(features_ND: np.ndarray) -> None:
    assert Cohort(features_ND, np.array([0, 60]), ["P1"], 2).neighbours(3, of_others=True) == []
    assert Cohort(features_ND[:1], np.array([0, 1]), ["P1"], 8).neighbours(0, of_others=False) == []


def test_clusters_are_the_groups_that_there_are_the_largest_first() -> None:
    random = np.random.default_rng(1)
    true_N = np.repeat([2, 0, 1], [20, 100, 50])
    features_ND = (10 * np.eye(3)[true_N] + 0.1 * random.standard_normal((170, 3))).astype(np.float32)
    cohort = Cohort(features_ND, np.array([0, 170]), ["P1"], 3)
    assert np.array_equal(cohort.clusters_N, true_N)
    assert cohort.sizes_K.tolist() == [100, 50, 20]
    for number, example in enumerate(cohort.examples_K):
        unit = features_ND / np.linalg.norm(features_ND, axis=1, keepdims=True)
        members = np.flatnonzero(true_N == number)
        centre = unit[members].mean(axis=0)
        assert example == members[np.argmax(unit[members] @ centre)]


def test_fewer_tiles_than_clusters_and_equal_tiles_are_no_fault() -> None:
    clusters_N, examples_K = cluster(np.eye(3, dtype=np.float32)[[0, 0, 0, 1]], 8)
    assert (clusters_N[:3] == clusters_N[0]).all()
    assert clusters_N[3] != clusters_N[0]
    assert clusters_N.max() == len(examples_K) - 1
