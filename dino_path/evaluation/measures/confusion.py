"""Predictions as plain numbers: confusion matrices and what follows from them, and areas under ROC curves.

Shape suffixes: N test images, C classes, G units (what is left out), B rows of weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def confusion_matrix(labels_N: Ints, predicted_N: Ints, num_classes: int) -> Ints:
    """Counts (C, C), rows are true classes."""
    cells = np.bincount(labels_N * num_classes + predicted_N, minlength=num_classes**2)
    return cells.astype(np.int64).reshape(num_classes, num_classes)


@dataclass(frozen=True)
class Margins:
    """The sums of confusion matrices (..., C, C) that most metrics need: for 1,000 classes, a thousandth of the memory.

    Attributes:
        hits, true, predicted: (..., C) right predictions, images and predictions of each class.
    """

    hits: NDArray[Any]
    true: NDArray[Any]
    predicted: NDArray[Any]

    @classmethod
    def of(cls, confusion_CC: NDArray[Any]) -> Margins:
        hits_C = np.diagonal(confusion_CC, axis1=-2, axis2=-1)
        return cls(hits_C, confusion_CC.sum(axis=-1), confusion_CC.sum(axis=-2))


def summarise(confusion_CC: NDArray[Any]) -> dict[str, Floats]:
    """Accuracy, balanced accuracy, macro F1 and Cohen's kappa of confusion matrices (..., C, C).

    Balanced accuracy is the mean over the classes that occur; macro F1 over those that occur or are predicted.
    """
    return summary_of(class_sums(Margins.of(confusion_CC)))


def class_sums(margins_C: Margins) -> dict[str, Floats]:
    """Sums over the classes (...) for `summary_of`; those of two parts of the classes add up to those of both."""
    scores = class_scores(margins_C)
    return {
        "images": margins_C.true.sum(axis=-1).astype(np.float64),
        "hits": margins_C.hits.sum(axis=-1).astype(np.float64),
        "by chance": (margins_C.true.astype(np.float64) * margins_C.predicted).sum(axis=-1),
        **_sum_and_number("recall", scores["recall"]),
        **_sum_and_number("f1", scores["f1"]),
    }


def area_sums(areas_C: Floats) -> dict[str, Floats]:
    """As `class_sums`, of areas under ROC curves (..., C)."""
    return _sum_and_number("auroc", areas_C)


def _sum_and_number(name: str, values_C: Floats) -> dict[str, Floats]:
    known_C = ~np.isnan(values_C)
    return {name: np.where(known_C, values_C, 0.0).sum(axis=-1), f"known {name}": known_C.sum(axis=-1, dtype=float)}


def summary_of(sums: Mapping[str, Floats]) -> dict[str, Floats]:
    """See `summarise`; with the mean area, where `area_sums` are among the sums."""
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = sums["hits"] / sums["images"]
        by_chance = sums["by chance"] / sums["images"] ** 2
        summary = {
            "accuracy": accuracy,
            "balanced_accuracy": sums["recall"] / sums["known recall"],
            "macro_f1": sums["f1"] / sums["known f1"],
            "kappa": (accuracy - by_chance) / (1 - by_chance),
        }
        return summary | ({"auroc": sums["auroc"] / sums["known auroc"]} if "auroc" in sums else {})


def areas(labels_N: Ints, scores_NC: Floats, weights_BN: NDArray[Any]) -> Floats:
    """Weighted one-versus-rest area (B, C) under each class's ROC curve; ties count half.

    Args:
        weights_BN: how often each image counts; a row of ones gives the ordinary areas. A class without weight on
            either side has NaN.
    """
    weights_NB = np.ascontiguousarray(weights_BN.T, dtype=np.float64)
    by_class = [_area(labels_N == label, scores_NC[:, label], weights_NB) for label in range(scores_NC.shape[1])]
    return np.stack(by_class, axis=-1)


def _area(is_positive_N: NDArray[np.bool_], score_N: Floats, weights_NB: Floats) -> Floats:
    """Mann-Whitney statistic (B,) of weighted images.

    Of negative images it only matters between which positive ones they lie, and of 1,000 classes few are positive.
    """
    scores_P = np.unique(score_N[is_positive_N])
    # 0 is below the first of these scores, 1 at it, 2 between it and the next ...
    place_N = np.searchsorted(scores_P, score_N, "left") + np.searchsorted(scores_P, score_N, "right")
    negative = _summed(weights_NB, place_N, ~is_positive_N, 2 * len(scores_P) + 1)
    positive = _summed(weights_NB, place_N // 2, is_positive_N, len(scores_P))
    wins_PB = np.cumsum(negative, axis=0)[:-1:2] + negative[1::2] / 2
    pairs_B = positive.sum(axis=0) * negative.sum(axis=0)
    with np.errstate(invalid="ignore"):
        area_B: Floats = (positive * wins_PB).sum(axis=0) / pairs_B
    return area_B


def _summed(weights_NB: Floats, place_N: Ints, is_counted_N: NDArray[np.bool_], num_places: int) -> Floats:
    """Weights of the counted images at each place, (num_places, B)."""
    from scipy.sparse import csr_array  # here, since scipy takes a second to import: refusals come before it

    counted = np.flatnonzero(is_counted_N)
    order = counted[np.argsort(place_N[counted], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(np.bincount(place_N[counted], minlength=num_places))])
    return np.asarray(csr_array((np.ones(len(order)), order, starts), (num_places, len(place_N))) @ weights_NB)


def class_scores(margins_C: Margins) -> dict[str, Floats]:
    """Recall, precision and F1 (..., C) of each class; NaN where they are not defined."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "recall": margins_C.hits / margins_C.true,
            "precision": margins_C.hits / margins_C.predicted,
            "f1": 2 * margins_C.hits / (margins_C.true + margins_C.predicted),
        }


def mean_where_known(values_C: Floats) -> Floats:
    """Mean over the last axis without NaNs; NaN if all are NaN."""
    known_C = ~np.isnan(values_C)
    with np.errstate(invalid="ignore"):
        mean: Floats = np.where(known_C, values_C, 0.0).sum(axis=-1) / known_C.sum(axis=-1)
    return mean


def areas_left_out(labels_N: Ints, scores_NC: Floats, unit_N: Ints, num_units: int, classes: Sequence[int]) -> Floats:
    """The areas (G, K) of K classes when each unit in turn is left out; NaN where that leaves no image on one side."""
    by_class = [_area_left_out(labels_N == label, scores_NC[:, label], unit_N, num_units) for label in classes]
    return np.stack(by_class, axis=-1)


def _area_left_out(is_positive_N: NDArray[np.bool_], score_N: Floats, unit_N: Ints, num_units: int) -> Floats:
    """Pairs that a unit takes part in leave with it; those within it were counted twice."""
    wins_N = _wins(is_positive_N, score_N, np.zeros_like(unit_N))
    within_N = np.where(is_positive_N, _wins(is_positive_N, score_N, unit_N), 0.0)
    lost_G = np.bincount(unit_N, wins_N, num_units) - np.bincount(unit_N, within_N, num_units)
    positive_G = np.bincount(unit_N, is_positive_N, num_units)
    negative_G = np.bincount(unit_N, ~is_positive_N, num_units)
    pairs_G = (positive_G.sum() - positive_G) * (negative_G.sum() - negative_G)
    with np.errstate(invalid="ignore", divide="ignore"):
        left: Floats = (wins_N[is_positive_N].sum() - lost_G) / pairs_G
    return np.where(pairs_G > 0, left, np.nan)


def _wins(is_positive_N: NDArray[np.bool_], score_N: Floats, unit_N: Ints) -> Floats:
    """For each image (N,) how many images of the other side in its own unit are ordered correctly; ties count half."""
    order = np.lexsort((score_N, unit_N))
    unit, score, is_positive = unit_N[order], score_N[order], is_positive_N[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (np.diff(unit) != 0) | (np.diff(score) != 0)
    tie = np.cumsum(is_first) - 1
    tied = [np.bincount(tie, side).astype(np.float64) for side in (is_positive, ~is_positive)]
    unit_of_tie = unit[is_first]
    below = []
    for count in tied:
        before = np.cumsum(count) - count
        start = np.searchsorted(unit_of_tie, unit_of_tie)
        below.append(before - before[start] + count / 2)
    positive_of_unit = np.bincount(unit_N, is_positive_N, int(unit_N.max()) + 1)
    wins = np.where(is_positive, below[1][tie], positive_of_unit[unit] - below[0][tie])
    result = np.empty(len(order))
    result[order] = wins
    return result
