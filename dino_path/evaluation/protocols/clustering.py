"""Whether images cluster by tissue or by the maker of the slide: PathoROB's clustering score.

For every two classes and two makers (centres or scanners) whose four combinations exist, k-means on features of length
1 is run, with the number of clusters that has the best silhouette (cosine). The score is the adjusted Rand index of the
clusters with the classes less that with the makers, from -1 to 1, averaged over runs and combinations: above 0 clusters
are of tissue. Source: PathoROB (Koemen et al. 2025, arXiv 2507.17845); fewer starts and runs than there, for time.

Shape suffixes: N images, D features, G units, K clusters, C classes (or makers).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from threadpoolctl import threadpool_limits

from dino_path.evaluation.measures.confusion import Floats, Ints
from dino_path.evaluation.measures.intervals import degrees_of_freedom
from dino_path.evaluation.measures.sample import Sample
from dino_path.evaluation.protocols.knn import unit_length
from dino_path.evaluation.protocols.makers import Cohort, of_unit_deviations

MAX_CLUSTERS = 30
MAX_PER_CELL = 150  # images of one class and maker
MAX_COMBINATIONS = 12
RUNS, STARTS = 10, 5
LEAST_PER_CELL = 5  # images: fewer make no cluster


@dataclass(frozen=True)
class Clustering:
    """The score, and the two adjusted Rand indices that it is the difference of."""

    score: Sample
    of_class: float
    of_maker: float
    num_combinations: int


def clustering_score(
    features_ND: NDArray[np.float32], cohort: Cohort, *, num_bootstrap: int, seed: int
) -> Clustering | None:
    """The clustering score; None where no two classes are of the same two makers.

    Args:
        features_ND: of the images of the cohort, in their order.
    """
    cells = {
        (label, maker): np.flatnonzero((cohort.labels == label) & (cohort.makers == maker))
        for label in range(len(cohort.classes)) for maker in range(len(cohort.names))
    }  # fmt: skip
    rng = np.random.default_rng(seed)
    cells = {
        cell: np.sort(rng.choice(members, MAX_PER_CELL, replace=False)) if len(members) > MAX_PER_CELL else members
        for cell, members in cells.items() if len(members) >= LEAST_PER_CELL
    }  # fmt: skip
    pairs = (combinations(range(len(names)), 2) for names in (cohort.classes, cohort.names))
    squares = [[(label, maker) for label, maker in product(*pair)] for pair in product(*pairs)]
    squares = [square for square in squares if all(cell in cells for cell in square)]
    if not squares:
        return None
    if len(squares) > MAX_COMBINATIONS:
        squares = [squares[n] for n in np.sort(rng.choice(len(squares), MAX_COMBINATIONS, replace=False))]
    unit_ND = unit_length(features_ND)
    by_square = [_score(unit_ND, np.concatenate([cells[cell] for cell in square]), cohort, seed) for square in squares]
    of_class, of_maker = np.mean([values for values, _ in by_square], axis=0)
    without_G = np.mean([without for _, without in by_square], axis=0)
    used = sorted({cell for square in squares for cell in square})
    counts_GC = np.stack(
        [np.bincount(cohort.units.index[cells[cell]], minlength=cohort.units.count) for cell in used], axis=1
    )
    score = of_unit_deviations(
        float(of_class - of_maker), without_G, degrees_of_freedom(counts_GC[counts_GC.any(axis=1)]), len(unit_ND),
        num_bootstrap=num_bootstrap, seed=seed,
    )  # fmt: skip
    return Clustering(score, float(of_class), float(of_maker), len(squares))


def _score(
    unit_ND: NDArray[np.float32], members: Ints, cohort: Cohort, seed: int
) -> tuple[tuple[float, float], Floats]:
    """Mean adjusted Rand indices of four cells with classes and makers, and their difference without each unit (G,)."""
    features = unit_ND[members].astype(np.float64)
    labels = np.unique(cohort.labels[members], return_inverse=True)[1]
    makers = np.unique(cohort.makers[members], return_inverse=True)[1]
    unit, num_units = cohort.units.index[members], cohort.units.count
    with threadpool_limits(1):  # threads cost more than they bring on some hundred images
        num_clusters = _num_clusters(features, seed)
        of_all, without = [], []
        for run in range(RUNS):
            clusters = KMeans(num_clusters, init="random", n_init=STARTS, random_state=seed + run).fit_predict(features)
            tables = [_tables(clusters, truth, unit, num_clusters, num_units) for truth in (labels, makers)]
            whole = [table.sum(axis=0) for table in tables]
            of_all.append([float(adjusted_rand(one)) for one in whole])
            of_class, of_maker = (adjusted_rand(one - table) for one, table in zip(whole, tables, strict=True))
            without.append(of_class - of_maker)
    class_index, maker_index = np.mean(of_all, axis=0)
    return (float(class_index), float(maker_index)), np.mean(without, axis=0)


def _num_clusters(features: Floats, seed: int) -> int:
    """From 2 to MAX_CLUSTERS, of the best silhouette by cosine distance."""
    distance = np.clip(1 - features @ features.T, 0, 2)
    np.fill_diagonal(distance, 0)
    scores = {}
    for number in range(2, min(MAX_CLUSTERS, len(features) - 1) + 1):
        clusters = KMeans(number, init="random", n_init=STARTS, random_state=seed).fit_predict(features)
        num_found = len(np.unique(clusters))
        if 1 < num_found < len(features):
            scores[number] = float(silhouette_score(distance, clusters, metric="precomputed"))
    return max(scores, key=lambda number: scores[number], default=2)


def _tables(clusters: Ints, truth: Ints, unit: Ints, num_clusters: int, num_units: int) -> Ints:
    """Counts (G, K, 2) of each unit's images by cluster and true group."""
    cell = (unit * num_clusters + clusters) * 2 + truth
    counts = np.bincount(cell, minlength=num_units * num_clusters * 2)
    return counts.reshape(num_units, num_clusters, 2).astype(np.int64)


def adjusted_rand(table_KC: NDArray[np.int64]) -> Floats:
    """Adjusted Rand index (...) of contingency tables (..., K, C), Hubert and Arabie 1985; 1 where none can differ."""
    pairs = _pairs(table_KC).sum(axis=(-2, -1))
    of_rows, of_columns = (_pairs(table_KC.sum(axis=axis)).sum(axis=-1) for axis in (-1, -2))
    total = _pairs(table_KC.sum(axis=(-2, -1)))
    by_chance = of_rows * of_columns / np.maximum(total, 1)
    span = (of_rows + of_columns) / 2 - by_chance
    with np.errstate(invalid="ignore", divide="ignore"):
        index: Floats = np.where(span == 0, 1.0, (pairs - by_chance) / span)
    return index


def _pairs(count: NDArray[np.int64]) -> Floats:
    return count * (count - 1) / 2.0
