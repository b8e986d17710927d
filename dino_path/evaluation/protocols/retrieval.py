"""Retrieval: the images of other patients that are most similar to an image, and how many of them have its class.

Similarity is the cosine of the features; nothing is trained. For each query

- majority vote of the k nearest (mMV@k, the first m being the mean over queries): 1 where more of them have the query's
  class than any other. Of classes with equally many, the one whose nearest image is nearer wins, as in `eval_patch.py`
  of SISH (Chen et al. 2022). Yottixel (Kalra et al. 2020) and UNI ("MVAcc@5", Chen et al. 2024) vote likewise.
- average precision (AP): mean, over all images of the query's class, of the share of that class among what comes no
  later; their mean over queries is mAP (Manning et al. 2008, section 8.4).
- average precision of the first k (AP@k): the same sum over the right ones among the first k, divided by k, or by how
  many right ones there are where those are fewer (Chen et al. 2022 divide by k).

Images are put in random order first, so that equal similarities (features that do not tell images apart) give what
chance gives, and not what the order of the files gives.
Shape suffixes: N images of the set, Q queries, K neighbours, C classes, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dino_path.config import IndexKind
from dino_path.evaluation.labelled.datasets import LabelledSet
from dino_path.evaluation.labelled.queries import Queries
from dino_path.evaluation.measures.confusion import Floats, Ints
from dino_path.evaluation.protocols.knn import RECALL_QUERIES, NeighbourIndex, unit_length

VOTERS = (1, 3, 5, 10)
NUM_NEIGHBOURS = max(VOTERS)
PRECISION_DEPTHS = (5, 10)
NONE = -1  # in place of a neighbour where other patients have fewer images
MAX_PAIRS_PER_CHUNK = 2**24


@dataclass(frozen=True)
class Retrieved:
    """The results of the queries.

    Attributes:
        neighbours: (Q, K) numbers of the most similar images of other units, most similar first; NONE: no more.
        similarity: (Q, K) cosines.
        average_precision: (Q,); None with an approximate index, which does not give the whole order.
        recall: share of the true K nearest that an approximate index finds; None: the search is exact.
    """

    neighbours: Ints
    similarity: NDArray[np.float32]
    average_precision: Floats | None
    recall: float | None


def retrieve(
    features_ND: NDArray[np.float32], labelled: LabelledSet, queries: Queries, kind: IndexKind, *, seed: int
) -> Retrieved:
    """The K nearest images of other units for every query, and with an exact search (`flat`) the average precision."""
    if kind == "flat":
        neighbours, similarity, precision = _exact(features_ND, labelled, queries.number, seed)
        return Retrieved(neighbours, similarity, precision, None)
    neighbours, similarity = _approximate(features_ND, labelled, queries.number, kind, seed)
    chosen = np.linspace(0, len(queries.number) - 1, min(len(queries.number), RECALL_QUERIES)).astype(int)
    true_QK = _exact(features_ND, labelled, queries.number[chosen], seed)[0]
    hits = [len(np.intersect1d(found, true)) for found, true in zip(neighbours[chosen], true_QK, strict=True)]
    return Retrieved(neighbours, similarity, None, sum(hits) / true_QK.size)


def scores_of_queries(retrieved: Retrieved, labelled: LabelledSet, queries: Queries) -> dict[str, Floats]:
    """Each measure (Q,), between 0 and 1: `mMV@k` for VOTERS, `mAP@k` for PRECISION_DEPTHS, and `mAP` where known."""
    label_QK = np.where(retrieved.neighbours == NONE, NONE, labelled.labels[retrieved.neighbours])
    query_label_Q = labelled.labels[queries.number]
    scores: dict[str, Floats] = {
        f"mMV@{k}": (majority(label_QK[:, :k], len(labelled.classes)) == query_label_Q).astype(np.float64)
        for k in VOTERS
    }
    is_right_QK = label_QK == query_label_Q[:, None]
    gain_QK = is_right_QK * is_right_QK.cumsum(axis=1) / np.arange(1, label_QK.shape[1] + 1)
    for k in PRECISION_DEPTHS:
        scores[f"mAP@{k}"] = gain_QK[:, :k].sum(axis=1) / np.minimum(queries.num_right, k)
    if retrieved.average_precision is not None:
        scores["mAP"] = retrieved.average_precision
    return scores


def units_among(neighbours_QK: Ints, units_N: Ints) -> Ints:
    """From how many units (patients, slides) the neighbours (Q, K) of each query are, (Q,)."""
    unit_QK = np.sort(np.where(neighbours_QK == NONE, NONE, units_N[neighbours_QK]), axis=1)
    is_new_QK = np.diff(unit_QK, axis=1, prepend=NONE) != 0
    count_Q: Ints = is_new_QK.sum(axis=1)
    return count_Q


def majority(label_QK: Ints, num_classes: int) -> Ints:
    """The class (Q,) that most of the neighbours have, nearest first; of equally many, the one with the nearest image.

    Args:
        label_QK: classes; NONE has no vote.
    """
    num_queries, k = label_QK.shape
    votes_QC, first_QC = np.zeros((num_queries, num_classes), np.int64), np.full((num_queries, num_classes), k)
    query_Q = np.arange(num_queries)
    for rank in reversed(range(k)):
        known_Q = label_QK[:, rank] != NONE
        votes_QC[query_Q[known_Q], label_QK[known_Q, rank]] += 1
        first_QC[query_Q[known_Q], label_QK[known_Q, rank]] = rank
    winner: Ints = (votes_QC * (k + 1) - first_QC).argmax(axis=1)
    return winner


def _exact(
    features_ND: NDArray[np.float32], labelled: LabelledSet, query_Q: Ints, seed: int
) -> tuple[Ints, NDArray[np.float32], Floats]:
    """Neighbours (Q, K), similarity (Q, K) and average precision (Q,) from the whole order of each query."""
    order_N = np.random.default_rng(seed).permutation(len(features_ND))
    unit_ND = unit_length(features_ND[order_N])
    units_N, labels_N = labelled.units[order_N], labelled.labels[order_N]
    parts = []
    chunk = max(1, MAX_PAIRS_PER_CHUNK // len(order_N))
    for start in range(0, len(query_Q), chunk):
        asked_Q = query_Q[start : start + chunk]
        # Its negative sorts the most similar first; of the own unit nothing is found.
        distance_QN = -(unit_length(features_ND[asked_Q]) @ unit_ND.T)
        distance_QN[labelled.units[asked_Q][:, None] == units_N] = np.inf
        rank_QN = distance_QN.argsort(axis=1)
        own_Q = np.bincount(units_N)[labelled.units[asked_Q]]
        is_right_QN = labels_N[rank_QN] == labelled.labels[asked_Q][:, None]
        is_right_QN &= np.arange(len(order_N)) < (len(order_N) - own_Q)[:, None]
        gain_QN = is_right_QN * is_right_QN.cumsum(axis=1, dtype=np.int32) / np.arange(1, len(order_N) + 1)
        nearest_QK = rank_QN[:, :NUM_NEIGHBOURS]
        nearest_distance_QK = np.take_along_axis(distance_QN, nearest_QK, axis=1)
        neighbours_QK = np.where(np.isinf(nearest_distance_QK), NONE, order_N[nearest_QK])
        parts.append((neighbours_QK, -nearest_distance_QK, gain_QN.sum(axis=1) / is_right_QN.sum(axis=1)))
    neighbours, similarity, precision = (np.concatenate(part) for part in zip(*parts, strict=True))
    missing = ((0, 0), (0, max(0, NUM_NEIGHBOURS - len(order_N))))  # a set of fewer images than neighbours
    return (
        np.pad(neighbours, missing, constant_values=NONE),
        np.pad(similarity, missing, constant_values=-np.inf),
        precision,
    )


def _approximate(
    features_ND: NDArray[np.float32], labelled: LabelledSet, query_Q: Ints, kind: IndexKind, seed: int
) -> tuple[Ints, NDArray[np.float32]]:
    """Neighbours and similarity (Q, K) by the index, unit after unit: it passes over the images of the unit that asks.

    Where it finds fewer than K, the search is exact.
    """
    index = NeighbourIndex(features_ND, kind)
    neighbours = np.full((len(query_Q), NUM_NEIGHBOURS), NONE, np.int64)
    similarity = np.full((len(query_Q), NUM_NEIGHBOURS), -np.inf, np.float32)
    by_unit = np.argsort(labelled.units, kind="stable")
    asked_by_unit = np.argsort(labelled.units[query_Q], kind="stable")
    present, first = np.unique(labelled.units[query_Q][asked_by_unit], return_index=True)
    starts = np.searchsorted(labelled.units[by_unit], [present, present + 1])
    for asked, start, end in zip(np.split(asked_by_unit, first[1:]), *starts, strict=True):
        similarity[asked], neighbours[asked] = index.search_without(
            features_ND[query_Q[asked]], NUM_NEIGHBOURS, by_unit[start:end]
        )
    few = np.flatnonzero((neighbours == NONE).any(axis=1))
    if few.size:
        neighbours[few], similarity[few], _ = _exact(features_ND, labelled, query_Q[few], seed)
    return neighbours, similarity
