"""k nearest neighbours on frozen features, voting by similarity.

Shape suffixes: N training images, Q queries, D features, K neighbours, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

QUERIES_PER_CHUNK = 4096
MAX_VOTES_PER_CHUNK = 2**24


@dataclass(frozen=True)
class KnnResult:
    """Predicted classes of the queries.

    Attributes:
        predicted: (Q,) class numbers.
        scores: (Q, C) share of the votes of each class; rows sum to 1.
        k: the neighbours that voted, clamped to the training set.
    """

    predicted: NDArray[np.int64]
    scores: NDArray[np.float64]
    k: int


def knn_classify(
    train_ND: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    query_QD: NDArray[np.float32],
    *,
    num_classes: int,
    k: int,
    temperature: float,
) -> KnnResult:
    """The class with the largest sum of exp(cosine similarity / temperature) over the k nearest training images.

    The search is exact. Source: Wu et al. 2018, section 3.4, as in facebookresearch/dino `eval_knn.py` (k = 20,
    temperature = 0.07). Votes are summed in fp64: exp(1 / 0.07) does not fit in fp16. Each query's votes are divided
    by their sum, which changes no prediction and makes scores comparable between queries.
    """
    k = min(k, len(train_ND))
    index = faiss.IndexFlatIP(train_ND.shape[1])
    index.add(unit_length(train_ND))
    predicted_Q = np.empty(len(query_QD), np.int64)
    scores_QC = np.empty((len(query_QD), num_classes), np.float64)
    chunk = max(1, min(QUERIES_PER_CHUNK, MAX_VOTES_PER_CHUNK // num_classes))
    for start in range(0, len(query_QD), chunk):
        similarity_QK, neighbour_QK = index.search(unit_length(query_QD[start : start + chunk]), k)
        votes_QC = sum_votes(similarity_QK, labels_N[neighbour_QK], num_classes=num_classes, temperature=temperature)
        scores_QC[start : start + chunk] = votes_QC
        predicted_Q[start : start + chunk] = votes_QC.argmax(axis=1)
    return KnnResult(predicted_Q, scores_QC, k)


def sum_votes(
    similarity_QK: NDArray[np.float32], label_QK: NDArray[np.int64], *, num_classes: int, temperature: float
) -> NDArray[np.float64]:
    """Share (Q, C) of the votes exp(similarity / temperature) that each class got; rows sum to 1."""
    similarity_QK = similarity_QK.astype(np.float64)
    weight_QK = np.exp((similarity_QK - similarity_QK.max(axis=1, keepdims=True)) / temperature)
    num_queries = len(label_QK)
    cell_QK = np.arange(num_queries)[:, None] * num_classes + label_QK
    votes: NDArray[np.float64] = np.bincount(
        cell_QK.ravel(), weight_QK.ravel(), minlength=num_queries * num_classes
    ).astype(np.float64)
    votes_QC = votes.reshape(num_queries, num_classes)
    share_QC: NDArray[np.float64] = votes_QC / votes_QC.sum(axis=1, keepdims=True)
    return share_QC


def unit_length(features_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same directions at length 1, fp32, contiguous; a zero vector stays zero."""
    features_ND = np.ascontiguousarray(features_ND, np.float32)
    length_N1 = np.linalg.norm(features_ND, axis=1, keepdims=True)
    unit_ND: NDArray[np.float32] = features_ND / np.maximum(length_N1, 1e-12)
    return unit_ND
