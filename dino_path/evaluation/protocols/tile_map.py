"""Features in two dimensions, and who is near whom in all of them.

The layout is t-SNE (van der Maaten and Hinton 2008) as Kobak and Berens (Nature Communications 2019) advise it for many
points: features at length 1, their first 50 principal components, the first two of them as the start, perplexity 30,
and a learning rate that grows with N (Belkina et al. 2019; openTSNE's own rule). openTSNE computes it from the exact
neighbours that FAISS finds; the same features and seed give the same map.

Shape suffixes: N tiles, D features, K neighbours, C clusters.
"""

from __future__ import annotations

from typing import assert_never

import faiss
import numpy as np
from numpy.typing import NDArray

from dino_path.evaluation.protocols.knn import unit_length
from dino_path.records.feature_map import MapMethod

NUM_COMPONENTS = 50
PERPLEXITY = 30
NEIGHBOURS_PER_PERPLEXITY = 3
EXAGGERATION, EXAGGERATED_ROUNDS, ROUNDS = 12, 250, 500
CLUSTER_ROUNDS = 25
QUERIES_PER_CHUNK = 4096
SPARE = 32  # neighbours of the tile's own group that the first search has room for

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def lay_out(features_ND: Floats, method: MapMethod, *, seed: int) -> Floats:
    """Places (N, 2) of the tiles, of mean zero.

    Args:
        features_ND: at least four rows.
    """
    components_NP = principal_components(unit_length(features_ND))
    match method:
        case "pca":
            return np.ascontiguousarray(components_NP[:, :2])
        case "tsne":
            return _tsne(components_NP, seed)
    assert_never(method)


def method_note(method: MapMethod, num_tiles: int) -> str:
    """How `lay_out` does it, in words."""
    match method:
        case "pca":
            return "the first two principal components of features of length 1"
        case "tsne":
            return (
                f"t-SNE (perplexity {_perplexity(num_tiles):g}) of the first {NUM_COMPONENTS} principal components of"
                " features of length 1, started from the first two"
            )
    assert_never(method)


def principal_components(unit_ND: Floats) -> Floats:
    """The first NUM_COMPONENTS, or as many as there are (two at least); each with its largest loading positive."""
    centred_ND = unit_ND - unit_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
    covariance_DD = centred_ND.astype(np.float64).T @ centred_ND.astype(np.float64)
    axes_DP = np.linalg.eigh(covariance_DD)[1][:, ::-1][:, :NUM_COMPONENTS]
    largest_P = axes_DP[np.abs(axes_DP).argmax(axis=0), np.arange(axes_DP.shape[1])]
    components_NP: Floats = (centred_ND @ (axes_DP * np.sign(largest_P))).astype(np.float32)
    return components_NP


def _perplexity(num_tiles: int) -> float:
    return min(PERPLEXITY, (num_tiles - 1) / NEIGHBOURS_PER_PERPLEXITY)


def _tsne(components_NP: Floats, seed: int) -> Floats:
    from openTSNE import TSNEEmbedding
    from openTSNE.affinity import PerplexityBasedNN
    from openTSNE.initialization import rescale
    from openTSNE.nearest_neighbors import PrecomputedNeighbors

    perplexity = _perplexity(len(components_NP))
    num_neighbours = min(len(components_NP) - 1, round(NEIGHBOURS_PER_PERPLEXITY * perplexity))
    number_NK, squared_NK = _nearest_but_self(components_NP, num_neighbours)
    index = PrecomputedNeighbors(number_NK, np.sqrt(squared_NK))
    affinities = PerplexityBasedNN(perplexity=perplexity, knn_index=index, n_jobs=1)
    start_N2 = rescale(components_NP[:, :2].astype(np.float64))
    # One thread: sums of several may differ in the last bit, and a map amplifies that.
    embedding = TSNEEmbedding(start_N2, affinities, n_jobs=1, random_state=seed)
    embedding = embedding.optimize(EXAGGERATED_ROUNDS, exaggeration=EXAGGERATION, momentum=0.5)
    embedding = embedding.optimize(ROUNDS, momentum=0.8)
    return np.asarray(embedding, np.float32)


def _nearest_but_self(points_NP: Floats, k: int) -> tuple[Ints, Floats]:
    """Numbers (N, K) and squared distances (N, K) of the nearest others, nearest first."""
    points_NP = np.ascontiguousarray(points_NP, np.float32)
    squared_NK, number_NK = faiss.knn(points_NP, points_NP, k + 1)
    return _without(number_NK, np.maximum(squared_NK, 0), number_NK == np.arange(len(points_NP))[:, None], k)


def _without(number_NK: Ints, value_NK: Floats, is_out_NK: NDArray[np.bool_], k: int) -> tuple[Ints, Floats]:
    """The first k of each row that are not out. A tile with many exact copies may not have found itself: then the last
    is out.
    """
    order_NK = np.argsort(is_out_NK, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(number_NK, order_NK, 1), np.take_along_axis(value_NK, order_NK, 1)


def neighbours_kept(features_ND: Floats, places_N2: Floats, k: int) -> float:
    """Of tiles' k nearest by cosine in feature space, the share that are among the k nearest in the map; by chance it
    is k / (N - 1).
    """
    # Between vectors of length 1 the nearest by distance are the nearest by cosine.
    true_NK = _nearest_but_self(unit_length(features_ND), k)[0]
    shown_NK = _nearest_but_self(places_N2, k)[0]
    num_tiles = len(features_ND)
    row_N1 = np.arange(num_tiles)[:, None] * num_tiles
    return float(np.isin(shown_NK + row_N1, true_NK + row_N1).mean())


def nearest_in_other_groups(features_ND: Floats, group_N: Ints, k: int) -> tuple[Ints, Floats]:
    """The k most similar tiles (cosine) of other groups, exactly.

    Returns:
        Numbers (N, K) and cosines (N, K), most similar first; -1 and 0 where other groups have fewer than k tiles.
    """
    unit_ND = unit_length(features_ND)
    number_NK = np.full((len(unit_ND), k), -1, np.int64)
    cosine_NK = np.zeros((len(unit_ND), k), np.float32)
    # Few tiles have their own group nearest: one search of all serves most, and the others look at other groups alone.
    wide = min(len(unit_ND), k + SPARE)
    for start in range(0, len(unit_ND), QUERIES_PER_CHUNK):
        rows = slice(start, start + QUERIES_PER_CHUNK)
        found, found_number = _search(unit_ND[rows], unit_ND, wide)
        is_own = group_N[found_number] == group_N[rows, None]
        number_NK[rows, : min(k, wide)], cosine_NK[rows, : min(k, wide)] = _without(found_number, found, is_own, k)
        is_short = (~is_own).sum(axis=1) < k
        number_NK[np.flatnonzero(is_short) + start] = -1
    short = np.flatnonzero((number_NK < 0).any(axis=1))
    for group in np.unique(group_N[short]):
        others = np.flatnonzero(group_N != group)
        own = short[group_N[short] == group]
        cosine_NK[own] = 0
        if count := min(k, len(others)):
            found, found_number = _search(unit_ND[own], unit_ND[others], count)
            number_NK[own, :count], cosine_NK[own, :count] = others[found_number], found
    return number_NK, cosine_NK


def _search(query_QD: Floats, unit_ND: Floats, k: int) -> tuple[Floats, Ints]:
    cosine_QK, number_QK = faiss.knn(query_QD, unit_ND, k, metric=faiss.METRIC_INNER_PRODUCT)
    return cosine_QK, number_QK


def agreement(code_N: Ints, group_N: Ints, neighbour_NK: Ints) -> tuple[float, float]:
    """Of tiles' neighbours the share with the tile's own code; and the same were they drawn from all other groups.

    Tiles without neighbours (-1) do not count; both are 0 where no tile has any.
    """
    is_there_NK = neighbour_NK >= 0
    is_alike_NK = (code_N[neighbour_NK] == code_N[:, None]) & is_there_NK
    num_of_code = np.bincount(code_N)
    num_of_group = np.bincount(group_N)
    _, number_N, num_of_pair = np.unique(
        np.stack([code_N, group_N]), axis=1, return_inverse=True, return_counts=True
    )  # fmt: skip
    num_others_N = len(code_N) - num_of_group[group_N]
    num_alike_N = num_of_code[code_N] - num_of_pair[number_N.ravel()]
    has_others_N = num_others_N > 0
    if not has_others_N.any():
        return 0.0, 0.0
    chance = (num_alike_N[has_others_N] / num_others_N[has_others_N]).mean()
    return float(is_alike_NK.sum() / is_there_NK.sum()), float(chance)


def clusters(features_ND: Floats, num_clusters: int, *, seed: int) -> Ints:
    """Cluster (N,) of each tile by spherical k-means on features of length 1; the largest cluster is 0."""
    unit_ND = unit_length(features_ND)
    kmeans = faiss.Kmeans(
        unit_ND.shape[1], min(num_clusters, len(unit_ND)), niter=CLUSTER_ROUNDS, seed=seed, spherical=True,
        min_points_per_centroid=1,
    )  # fmt: skip
    kmeans.train(unit_ND)
    centroid_CD = np.asarray(kmeans.centroids, np.float32)
    found_N = _search(unit_ND, centroid_CD, 1)[1][:, 0]
    order_C = np.argsort(-np.bincount(found_N, minlength=len(centroid_CD)), kind="stable")
    rank_C = np.empty(len(order_C), np.int64)
    rank_C[order_C] = np.arange(len(order_C))
    return rank_C[found_N]
