"""Predictions as plain numbers: confusion matrices and what follows from them, and areas under ROC curves.

Shape suffixes: N test images, C classes, G units (what is left out), B rows of weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def confusion_matrix(labels_N: Ints, predicted_N: Ints, num_classes: int) -> Ints:
    """Counts (C, C), rows are true classes."""
    cells = np.bincount(labels_N * num_classes + predicted_N, minlength=num_classes**2)
    return cells.astype(np.int64).reshape(num_classes, num_classes)


def summarise(confusion_CC: NDArray[Any]) -> dict[str, Floats]:
    """Accuracy, balanced accuracy, macro F1 and Cohen's kappa of confusion matrices (..., C, C).

    Balanced accuracy is the mean over the classes that occur; macro F1 over those that occur or are predicted.
    """
    confusion_CC = confusion_CC.astype(np.float64)
    total = confusion_CC.sum(axis=(-2, -1))
    hits_C = np.diagonal(confusion_CC, axis1=-2, axis2=-1)
    true_C, predicted_C = confusion_CC.sum(axis=-1), confusion_CC.sum(axis=-2)
    by_class = class_scores(confusion_CC)
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = hits_C.sum(axis=-1) / total
        by_chance = (true_C * predicted_C).sum(axis=-1) / total**2
        kappa = (accuracy - by_chance) / (1 - by_chance)
    return {
        "accuracy": accuracy,
        "balanced_accuracy": mean_where_known(by_class["recall"]),
        "macro_f1": mean_where_known(by_class["f1"]),
        "kappa": kappa,
    }


def areas(labels_N: Ints, scores_NC: Floats, weights_BN: NDArray[Any]) -> Floats:
    """Weighted one-versus-rest area (B, C) under each class's ROC curve; ties count half.

    Args:
        weights_BN: how often each image counts; a row of ones gives the ordinary areas. A class without weight on
            either side has NaN.
    """
    by_class = [_area(labels_N == label, scores_NC[:, label], weights_BN) for label in range(scores_NC.shape[1])]
    return np.stack(by_class, axis=-1)


def _area(is_positive_N: NDArray[np.bool_], score_N: Floats, weights_BN: NDArray[Any]) -> Floats:
    """Mann-Whitney statistic of weighted images."""
    order = np.argsort(score_N, kind="stable")
    first_of_ties = np.flatnonzero(np.diff(score_N[order], prepend=-np.inf))
    sorted_BN = weights_BN[:, order].astype(np.float64)
    positive = np.add.reduceat(sorted_BN * is_positive_N[order], first_of_ties, axis=1)
    negative = np.add.reduceat(sorted_BN * ~is_positive_N[order], first_of_ties, axis=1)
    below = np.cumsum(negative, axis=1) - negative
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    with np.errstate(invalid="ignore"):
        area_B: Floats = (positive * (below + negative / 2)).sum(axis=1) / pairs
    return area_B


def class_scores(confusion_CC: NDArray[Any]) -> dict[str, Floats]:
    """Recall, precision and F1 (..., C) of each class; NaN where they are not defined."""
    hits_C = np.diagonal(confusion_CC, axis1=-2, axis2=-1)
    true_C, predicted_C = confusion_CC.sum(axis=-1), confusion_CC.sum(axis=-2)
    with np.errstate(invalid="ignore"):
        return {
            "recall": hits_C / true_C,
            "precision": hits_C / predicted_C,
            "f1": 2 * hits_C / (true_C + predicted_C),
        }


def mean_where_known(values_C: Floats) -> Floats:
    """Mean over the last axis without the NaNs; NaN where there is nothing else."""
    known_C = ~np.isnan(values_C)
    with np.errstate(invalid="ignore"):
        mean: Floats = np.where(known_C, values_C, 0.0).sum(axis=-1) / known_C.sum(axis=-1)
    return mean


def areas_left_out(labels_N: Ints, scores_NC: Floats, unit_N: Ints, num_units: int) -> Floats:
    """The areas (G, C) when each unit in turn is left out; NaN where that leaves no image on one side."""
    by_class = [
        _area_left_out(labels_N == label, scores_NC[:, label], unit_N, num_units) for label in range(scores_NC.shape[1])
    ]
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
    """For each image (N,) how many of the other side, of its own unit, are rightly ordered to it; ties count half."""
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
