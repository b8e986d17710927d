"""Layout, neighbours and clusters of a map, against the plain way of computing each."""

import numpy as np
import pytest

from dino_path.evaluation.protocols.tile_map import (
    SPARE,
    agreement,
    clusters,
    lay_out,
    nearest_in_other_groups,
    neighbours_kept,
    principal_components,
)


def groups_of_points(num: int, dimensions: int, *, centres: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features (num, dimensions) around a few directions, and which."""
    random = np.random.default_rng(seed)
    which = random.integers(0, centres, num)
    directions = 4 * random.normal(size=(centres, dimensions))
    return (directions[which] + random.normal(size=(num, dimensions))).astype(np.float32), which


def slow_neighbours(features: np.ndarray, group: np.ndarray, k: int) -> list[list[int]]:
    unit = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    cosine = unit @ unit.T
    rows = []
    for tile in range(len(unit)):
        others = [other for other in range(len(unit)) if group[other] != group[tile]]
        rows.append(sorted(others, key=lambda other: -cosine[tile, other])[:k])
    return rows


@pytest.mark.parametrize("kind", ["many small groups", "one large group", "groups that are what the features are of"])
def test_neighbours_of_other_groups_are_those_of_a_full_search(kind: str) -> None:
    features, which = groups_of_points(300, 12)
    random = np.random.default_rng(1)
    group = {
        "many small groups": np.arange(300) // 2,
        "one large group": (random.random(300) < 0.03).astype(int),
        "groups that are what the features are of": which,
    }[kind].astype(np.int64)
    assert kind != "groups that are what the features are of" or np.bincount(group).min() > 10 + SPARE
    number, cosine = nearest_in_other_groups(features, group, 10)
    for tile, expected in enumerate(slow_neighbours(features, group, 10)):
        found = number[tile][number[tile] >= 0]
        assert found.tolist() == expected
        assert (np.diff(cosine[tile][: len(found)]) <= 1e-6).all()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    there = number >= 0
    assert np.allclose(cosine[there], np.einsum("nd,nkd->nk", unit, unit[number])[there], atol=1e-5)


def test_where_other_groups_have_too_few_tiles_the_rest_is_marked() -> None:
    features, _ = groups_of_points(20, 8)
    group = np.array([0] * 17 + [1] * 3)
    number, cosine = nearest_in_other_groups(features, group, 10)
    assert ((number[:17] >= 0).sum(axis=1) == 3).all()
    assert (number[17:] >= 0).all()
    assert (cosine[number < 0] == 0).all()
    alone, _ = nearest_in_other_groups(features, np.zeros(20, np.int64), 10)
    assert (alone == -1).all()


def test_agreement_counts_alike_neighbours_and_chance_is_of_all_other_groups() -> None:
    code = np.array([0, 0, 1, 1, 0, 1])
    group = np.array([0, 0, 0, 1, 1, 2])
    neighbours = np.array([[3, 4], [4, 5], [3, 5], [0, 2], [1, 5], [-1, -1]])
    alike, chance = agreement(code, group, neighbours)
    assert alike == pytest.approx((1 + 1 + 2 + 1 + 1) / 10)
    # By tile: others of the same code among tiles of other groups.
    assert chance == pytest.approx(np.mean([1 / 3, 1 / 3, 2 / 3, 2 / 4, 2 / 4, 2 / 5]))
    assert agreement(code, np.zeros(6, np.int64), np.full((6, 2), -1)) == (0, 0)


def test_principal_components_are_those_of_a_singular_value_decomposition() -> None:
    features, _ = groups_of_points(120, 70)
    left, values, _ = np.linalg.svd(features.astype(np.float64) - features.mean(axis=0, dtype=np.float64))
    expected = left[:, :50] * values[:50]
    found = principal_components(features)
    assert found.shape == (120, 50)
    sign = np.sign((found * expected).sum(axis=0))
    assert np.allclose(found, expected * sign, atol=1e-3)


def test_neighbours_kept_is_the_overlap_of_both_lists() -> None:
    features, _ = groups_of_points(200, 20)
    places = np.random.default_rng(2).normal(size=(200, 2)).astype(np.float32)
    true = slow_neighbours(features, np.arange(200), 10)
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1) + np.diag(np.full(200, np.inf))
    shown = distance.argsort(axis=1)[:, :10]
    expected = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(true, shown, strict=True)])
    assert neighbours_kept(features, places, 10) == pytest.approx(expected, abs=1e-6)
    flat = np.random.default_rng(3).normal(size=(200, 2)).astype(np.float32)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    assert neighbours_kept(flat, flat, 10) == 1


def test_tsne_keeps_groups_together_better_than_pca_and_gives_the_same_map_again() -> None:
    features, which = groups_of_points(160, 40, centres=6)
    map_of_tsne = lay_out(features, "tsne", seed=3)
    assert map_of_tsne.shape == (160, 2)
    assert np.array_equal(map_of_tsne, lay_out(features, "tsne", seed=3))
    nearest = np.linalg.norm(map_of_tsne[:, None] - map_of_tsne[None], axis=-1) + np.diag(np.full(160, np.inf))
    assert (which[nearest.argmin(axis=1)] == which).mean() > 0.98
    assert neighbours_kept(features, map_of_tsne, 10) > neighbours_kept(features, lay_out(features, "pca", seed=3), 10)


def test_exact_copies_and_few_dimensions_have_a_map_too() -> None:
    features = np.repeat(np.eye(4, dtype=np.float32) + 0.1, 15, axis=0)
    places = lay_out(features, "tsne", seed=0)
    assert np.isfinite(places).all()
    assert 0 <= neighbours_kept(features, places, 10) <= 1
    number, _ = nearest_in_other_groups(features, np.arange(60), 10)
    assert (number != np.arange(60)[:, None]).all()
    assert all(len(set(row)) == 10 for row in number.tolist())


def test_clusters_find_separate_groups_and_are_numbered_by_size() -> None:
    features, which = groups_of_points(400, 16, centres=3)
    cluster = clusters(features, 3, seed=0)
    assert (np.diff(np.bincount(cluster)) <= 0).all()
    pairs = set(zip(cluster.tolist(), which.tolist(), strict=True))
    assert len(pairs) == 3
    assert np.array_equal(cluster, clusters(features, 3, seed=0))
