"""k nearest neighbours on frozen features, in two published ways.

- DINO's: cosine similarity, votes exp(similarity / 0.07), k = 20 (Wu et al. 2018, section 3.4; facebookresearch/dino
  `eval_knn.py`). `knn_classify` with a temperature.
- UNI's: k = 20, Euclidean distance on features that are centred by the training mean and then brought to length 1, one
  vote each (Chen et al. 2024; mahmoodlab/UNI `fewshot.py`). Between vectors of length 1 the nearest by distance are the
  nearest by cosine, so this is `knn_classify` on `centred` features without a temperature.

Shape suffixes: N training images, Q queries, D features, K neighbours, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import assert_never

import faiss
import numpy as np
from numpy.typing import NDArray

from dino_path.config import IndexKind

QUERIES_PER_CHUNK = 4096
MAX_VOTES_PER_CHUNK = 2**24
RECALL_QUERIES = 1000
IVF_PROBED_SHARE = 1 / 16  # of the lists: what a query looks into
IVF_ROUNDS, IVF_POINTS_PER_LIST = 10, 64  # of k-means: a third of the time of FAISS's 25 and 256, the same recall
HNSW_LINKS, HNSW_BUILD_DEPTH, HNSW_SEARCH_DEPTH = 32, 100, 128


@dataclass(frozen=True)
class KnnResult:
    """Predicted classes of the queries for one k.

    Attributes:
        predicted: (Q,) class numbers; of classes with equal votes the first.
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
    ks: Sequence[int],
    temperature: float | None,
    index: NeighbourIndex | None = None,
) -> dict[int, KnnResult]:
    """For each of `ks`, the class with most votes among the k most similar training images (cosine); one search
    serves all.

    Votes are summed in fp64: exp(1 / 0.07) does not fit in fp16. Each query's votes are divided by their sum, which
    changes no prediction and makes scores comparable between queries.

    Args:
        temperature: a neighbour's vote is exp(similarity / temperature); None: one each.
        index: of `train_ND`, where one was built already; None: exact search.
    """
    index = index or NeighbourIndex(train_ND, "flat")
    chunk = max(1, min(QUERIES_PER_CHUNK, MAX_VOTES_PER_CHUNK // num_classes))
    clamped = {k: min(k, len(train_ND)) for k in ks}
    scores = {k: np.empty((len(query_QD), num_classes), np.float64) for k in ks}
    for start, similarity_QK, neighbour_QK in index.search(query_QD, max(clamped.values()), chunk=chunk):
        label_QK = labels_N[neighbour_QK]
        for k, voters in clamped.items():
            scores[k][start : start + len(label_QK)] = sum_votes(
                similarity_QK[:, :voters], label_QK[:, :voters], num_classes=num_classes, temperature=temperature
            )
    return {k: KnnResult(scores_QC.argmax(axis=1), scores_QC, clamped[k]) for k, scores_QC in scores.items()}


class NeighbourIndex:
    """The most similar of N vectors by cosine: exact (`flat`), or approximate for millions (`ivf`, `hnsw`).

    Holds one copy of the features at length 1; an approximate index holds another of its own.
    """

    def __init__(self, train_ND: NDArray[np.float32], kind: IndexKind) -> None:
        self._unit_ND = unit_length(train_ND)
        self._index = _build(self._unit_ND, kind)

    def search(
        self, query_QD: NDArray[np.float32], k: int, *, chunk: int = QUERIES_PER_CHUNK
    ) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.int64]]]:
        """First query, similarity (Q, K) and number (Q, K) of the neighbours, most similar first, chunk by chunk."""
        for start in range(0, len(query_QD), chunk):
            unit_QD = unit_length(query_QD[start : start + chunk])
            if self._index is None:
                similarity_QK, neighbour_QK = self._exact(unit_QD, k)
            else:
                similarity_QK, neighbour_QK = self._index.search(unit_QD, k)
                if (neighbour_QK < 0).any():  # the lists that were looked into hold fewer than k
                    similarity_QK, neighbour_QK = self._exact(unit_QD, k)
            yield start, similarity_QK, neighbour_QK

    def search_without(
        self, query_QD: NDArray[np.float32], k: int, left_out: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Similarity and number (Q, K) of the neighbours by an approximate index, which skips some vectors.

        -1 stands where it finds fewer than k.

        Args:
            left_out: numbers of the vectors that must not be found.
        """
        assert self._index is not None
        others = faiss.IDSelectorNot(faiss.IDSelectorBatch(left_out))
        if isinstance(self._index, faiss.IndexIVFFlat):
            how = faiss.SearchParametersIVF(sel=others, nprobe=self._index.nprobe)  # type: ignore[call-arg]
        else:
            how = faiss.SearchParametersHNSW(sel=others, efSearch=HNSW_SEARCH_DEPTH)  # type: ignore[attr-defined]
        similarity_QK, neighbour_QK = self._index.search(unit_length(query_QD), k, params=how)
        return similarity_QK, neighbour_QK

    def recall(self, query_QD: NDArray[np.float32], k: int) -> float:
        """Share of the true k nearest that are found, over up to RECALL_QUERIES queries; 1 for the exact index."""
        if self._index is None:
            return 1.0
        chosen = np.linspace(0, len(query_QD) - 1, min(len(query_QD), RECALL_QUERIES)).astype(int)
        _, _, found_QK = next(self.search(query_QD[chosen], k))
        true_QK = self._exact(unit_length(query_QD[chosen]), k)[1]
        hits = [len(np.intersect1d(found, true)) for found, true in zip(found_QK, true_QK, strict=True)]
        return sum(hits) / true_QK.size

    def _exact(self, unit_QD: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        similarity_QK, neighbour_QK = faiss.knn(unit_QD, self._unit_ND, k, metric=faiss.METRIC_INNER_PRODUCT)
        return similarity_QK, neighbour_QK


def sum_votes(
    similarity_QK: NDArray[np.float32],
    label_QK: NDArray[np.int64],
    *,
    num_classes: int,
    temperature: float | None,
) -> NDArray[np.float64]:
    """Share (Q, C) of the votes, exp(similarity / temperature) or one each, that a class got; rows sum to 1."""
    similarity_QK = similarity_QK.astype(np.float64)
    if temperature is None:
        weight_QK = np.ones_like(similarity_QK)
    else:
        weight_QK = np.exp((similarity_QK - similarity_QK.max(axis=1, keepdims=True)) / temperature)
    num_queries = len(label_QK)
    cell_QK = np.arange(num_queries)[:, None] * num_classes + label_QK
    votes: NDArray[np.float64] = np.bincount(
        cell_QK.ravel(), weight_QK.ravel(), minlength=num_queries * num_classes
    ).astype(np.float64)
    votes_QC = votes.reshape(num_queries, num_classes)
    share_QC: NDArray[np.float64] = votes_QC / votes_QC.sum(axis=1, keepdims=True)
    return share_QC


def centred(
    train_ND: NDArray[np.float32], query_QD: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Both less the mean of the training features."""
    mean_D = train_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
    return train_ND - mean_D, query_QD - mean_D


def unit_length(features_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same directions at length 1, fp32, contiguous; a zero vector stays zero."""
    features_ND = np.ascontiguousarray(features_ND, np.float32)
    length_N1 = np.linalg.norm(features_ND, axis=1, keepdims=True)
    unit_ND: NDArray[np.float32] = features_ND / np.maximum(length_N1, 1e-12)
    return unit_ND


def _build(unit_ND: NDArray[np.float32], kind: IndexKind) -> faiss.Index | None:
    """None for the exact search, which needs no more than the vectors."""
    num_features = unit_ND.shape[1]
    match kind:
        case "flat":
            return None
        case "ivf":
            # Four times the root of N lists, as FAISS advises; not so many that k-means has too few points for each.
            num_lists = max(1, min(4 * math.isqrt(len(unit_ND)), len(unit_ND) // 39))
            coarse = faiss.IndexFlatIP(num_features)
            lists = faiss.IndexIVFFlat(coarse, num_features, num_lists, faiss.METRIC_INNER_PRODUCT)
            lists.cp.niter, lists.cp.max_points_per_centroid = IVF_ROUNDS, IVF_POINTS_PER_LIST
            lists.train(unit_ND)
            lists.add(unit_ND)
            lists.nprobe = math.ceil(num_lists * IVF_PROBED_SHARE)
            return lists
        case "hnsw":
            graph = faiss.IndexHNSWFlat(num_features, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
            graph.hnsw.efConstruction, graph.hnsw.efSearch = HNSW_BUILD_DEPTH, HNSW_SEARCH_DEPTH
            graph.add(unit_ND)
            return graph
    assert_never(kind)
