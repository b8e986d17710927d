"""How good predictions are, each number with its 95 % confidence interval.

Intervals are percentile bootstraps over units: patients or slides where the data name them, else images. Tiles of one
slide are alike, so an interval over tiles would be far too narrow (cluster bootstrap: Field and Welsh 2007).

Shape suffixes: N test images, C classes, G units, B bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import stdtrit

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "kappa", "auroc")
LOWER, UPPER = 2.5, 97.5
MAX_WEIGHTS_PER_CHUNK = 2**23


@dataclass(frozen=True)
class Score:
    """A number and its 95 % confidence interval; low and high are NaN where fewer than two units were tested."""

    value: float
    low: float
    high: float

    def record(self) -> dict[str, float | None]:
        """For JSON: NaN becomes null."""
        return {f.name: None if math.isnan(v := getattr(self, f.name)) else v for f in fields(self)}

    def decimals(self) -> tuple[str, str, str]:
        """For CSV: value, low, high."""
        return f"{self.value:.6f}", f"{self.low:.6f}", f"{self.high:.6f}"

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.3f} (no interval)"
        between = "-" if self.low >= 0 else " to "
        return f"{self.value:.3f} ({self.low:.3f}{between}{self.high:.3f})"


@dataclass(frozen=True)
class Units:
    """What the bootstrap draws: `name` ("patients", "slides", "images"); `index` (N,) is each test image's."""

    name: str
    index: Ints

    @property
    def count(self) -> int:
        return int(self.index.max()) + 1

    @classmethod
    def of(cls, groups_N: NDArray[np.str_] | None, group_kind: str | None, num_images: int) -> Units:
        """Units of test images whose groups are `groups_N`; each image is one where no groups are known."""
        if groups_N is None:
            return cls("images", np.arange(num_images))
        return cls(f"{group_kind}s", np.unique(groups_N, return_inverse=True)[1].astype(np.int64))


@dataclass(frozen=True)
class Metrics:
    """All numbers of one set of predictions.

    Attributes:
        auroc: mean of the one-versus-rest areas under the ROC curve.
        by_class: recall, precision, f1 and auroc (one versus rest) of each class, in class order; NaN where a class was
            never predicted or does not occur.
        confusion: (C, C) counts, rows are true classes.
        unit: what the bootstrap drew, and num_units how many of them were tested.
        draws: (B,) of each of METRICS over the resamples; not part of the record.
    """

    accuracy: Score
    balanced_accuracy: Score
    macro_f1: Score
    kappa: Score
    auroc: Score
    by_class: dict[str, tuple[Score, ...]]
    confusion: Ints
    num_images: int
    num_units: int
    unit: str
    draws: dict[str, Floats] = field(repr=False, compare=False)

    def record(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """For JSON."""
        return {
            **{name: getattr(self, name).record() for name in METRICS},
            "recall": self._class_records("recall", classes),
            "by_class": {name: self._class_records(name, classes) for name in self.by_class},
            "confusion": self.confusion.tolist(),
            "num_test_images": self.num_images,
            "interval": f"95 % bootstrap over {self.num_units} {self.unit}",
        }

    def _class_records(self, name: str, classes: tuple[str, ...]) -> dict[str, dict[str, float | None]]:
        return {label: score.record() for label, score in zip(classes, self.by_class[name], strict=True)}


def measure(labels_N: Ints, predicted_N: Ints, scores_NC: Floats, units: Units, *, num_bootstrap: int, seed: int
            ) -> Metrics:  # fmt: skip
    """Accuracy, balanced accuracy, macro F1, Cohen's kappa and AUROC, and the scores of each class, with intervals.

    Args:
        scores_NC: class scores, larger is likelier.
    """
    num_classes = scores_NC.shape[1]
    confusion_CC = confusion_matrix(labels_N, predicted_N, num_classes)
    confusion_BCC = _resampled_confusions(labels_N, predicted_N, num_classes, units, num_bootstrap, seed)
    areas_C = areas(labels_N, scores_NC, np.ones((1, len(labels_N))))[0]
    areas_BC = np.concatenate(
        [areas(labels_N, scores_NC, weights[:, units.index]) for weights in _resamples(units, num_bootstrap, seed)]
    )
    values = {**summarise(confusion_CC), "auroc": _mean_where_known(areas_C)}
    draws = {**summarise(confusion_BCC), "auroc": _mean_where_known(areas_BC)}
    values_C = {**_class_scores(confusion_CC), "auroc": areas_C}
    draws_BC = {**_class_scores(confusion_BCC), "auroc": areas_BC}
    units_of_C = [len(np.unique(units.index[labels_N == label])) for label in range(num_classes)]
    return Metrics(
        **{name: _interval(float(values[name]), draws[name], units.count) for name in METRICS},
        by_class={
            name: tuple(
                _interval(float(values_C[name][label]), draws_BC[name][:, label], units_of_C[label])
                for label in range(num_classes)
            )
            for name in values_C
        },
        confusion=confusion_CC,
        num_images=len(labels_N),
        num_units=units.count,
        unit=units.name,
        draws=draws,
    )


def paired_difference(metrics: Metrics, reference: Metrics) -> dict[str, Score]:
    """Metrics minus reference, each of METRICS, both measured on the same images with the same resamples.

    That leaves out what they have in common (hard slides are hard for both): the interval is narrower, and rightly so,
    than two intervals side by side suggest.
    """
    return {
        name: _percentiles(
            getattr(metrics, name).value - getattr(reference, name).value,
            metrics.draws[name] - reference.draws[name],
            metrics.num_units,
        )
        for name in METRICS
    }


def mean_score(values_N: Floats, units: Units, *, num_bootstrap: int, seed: int) -> Score:
    """Mean of a value between 0 and 1 of each image, with its interval."""
    total_G = np.bincount(units.index, values_N, minlength=units.count)
    count_G = np.bincount(units.index, minlength=units.count)
    draws = [(weights @ total_G) / (weights @ count_G) for weights in _resamples(units, num_bootstrap, seed)]
    return _interval(float(values_N.mean()), np.concatenate(draws), units.count)


def mean_over_draws(
    labels_N: Ints, predicted_LN: Ints, reference_LN: Ints | None, units: Units, *, num_classes: int,
    num_bootstrap: int, seed: int,
) -> dict[str, Score]:  # fmt: skip
    """Mean of each metric over L sets of predictions of the same images, made from L draws of the labelled images.

    The interval holds what either choice may do: the bootstrap interval over units of the mean, and the t interval over
    the draws, put together by their squares (Zou and Donner 2008). Five draws resampled would give too narrow an
    interval: five values know their spread badly.

    Args:
        reference_LN: the other model's, from the same label draws: the result is the mean difference. None: no other.
    """

    def measured(all_LN: Ints) -> list[tuple[dict[str, Floats], dict[str, Floats]]]:
        return [
            (
                summarise(confusion_matrix(labels_N, one_N, num_classes)),
                summarise(_resampled_confusions(labels_N, one_N, num_classes, units, num_bootstrap, seed)),
            )
            for one_N in all_LN
        ]

    own, other = measured(predicted_LN), None if reference_LN is None else measured(reference_LN)
    result = {}
    for name in own[0][0]:
        values_L, draws_LB = (np.stack([part[kind][name] for part in own]) for kind in (0, 1))
        if other is not None:
            values_L = values_L - np.stack([values[name] for values, _ in other])
            draws_LB = draws_LB - np.stack([draws[name] for _, draws in other])
        interval = _interval if other is None else _percentiles
        over_units = interval(float(values_L.mean()), draws_LB.mean(axis=0), units.count)
        result[name] = over_units if len(values_L) == 1 else _widened(over_units, values_L)
    return result


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
    by_class = _class_scores(confusion_CC)
    accuracy = hits_C.sum(axis=-1) / total
    by_chance = (true_C * predicted_C).sum(axis=-1) / total**2
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa = (accuracy - by_chance) / (1 - by_chance)
    return {
        "accuracy": accuracy,
        "balanced_accuracy": _mean_where_known(by_class["recall"]),
        "macro_f1": _mean_where_known(by_class["f1"]),
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


def _class_scores(confusion_CC: NDArray[Any]) -> dict[str, Floats]:
    """Recall, precision and F1 (..., C) of each class; NaN where they are not defined."""
    hits_C = np.diagonal(confusion_CC, axis1=-2, axis2=-1)
    true_C, predicted_C = confusion_CC.sum(axis=-1), confusion_CC.sum(axis=-2)
    with np.errstate(invalid="ignore"):
        return {
            "recall": hits_C / true_C,
            "precision": hits_C / predicted_C,
            "f1": 2 * hits_C / (true_C + predicted_C),
        }


def _mean_where_known(values_C: Floats) -> Floats:
    """Mean over the last axis without the NaNs; NaN where there is nothing else."""
    known_C = ~np.isnan(values_C)
    with np.errstate(invalid="ignore"):
        mean: Floats = np.where(known_C, values_C, 0.0).sum(axis=-1) / known_C.sum(axis=-1)
    return mean


def _resamples(units: Units, num_bootstrap: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """How often (B, G) each unit was drawn, with replacement, in chunks of bounded size; the same for equal seeds."""
    rng = np.random.default_rng(seed)
    num_units = units.count
    chunk = max(1, MAX_WEIGHTS_PER_CHUNK // len(units.index))
    for start in range(0, num_bootstrap, chunk):
        num_rows = min(chunk, num_bootstrap - start)
        drawn = rng.integers(num_units, size=(num_rows, num_units))
        drawn += np.arange(num_rows)[:, None] * num_units
        yield np.bincount(drawn.ravel(), minlength=num_rows * num_units).reshape(num_rows, num_units)


def _resampled_confusions(
    labels_N: Ints, predicted_N: Ints, num_classes: int, units: Units, num_bootstrap: int, seed: int
) -> Floats:
    """Confusion matrices (B, C, C) of the resamples."""
    cells = labels_N * num_classes + predicted_N
    ones = np.ones(len(cells))
    counts_of_units = csr_array((ones, (cells, units.index)), shape=(num_classes**2, units.count))
    chunks = [(counts_of_units @ weights.T.astype(np.float64)).T for weights in _resamples(units, num_bootstrap, seed)]
    return np.concatenate(chunks).reshape(num_bootstrap, num_classes, num_classes)


def _interval(value: float, draws_B: Floats, num_units: int) -> Score:
    """Percentile interval of a score whose best value is 1.

    Where all units are right (or all wrong), resampling sees no spread and would claim certainty. Then the exact
    binomial bound of `num_units` successes in as many trials stands in: 5 slides without an error do not prove 1.0.
    """
    score = _percentiles(value, draws_B, num_units)
    bound = 0.025 ** (1 / max(num_units, 1))
    if value >= 1.0 and not math.isnan(score.low):
        return Score(value, min(score.low, bound), score.high)
    if value <= 0.0 and not math.isnan(score.high):
        return Score(value, score.low, max(score.high, 1 - bound))
    return score


def _widened(over_units: Score, values_L: Floats) -> Score:
    """The interval with that of the mean of L values added, by the squares of their arms; scores end at 1."""
    arm = float(stdtrit(len(values_L) - 1, UPPER / 100) * values_L.std(ddof=1) / math.sqrt(len(values_L)))
    low = over_units.value - math.hypot(over_units.value - over_units.low, arm)
    high = over_units.value + math.hypot(over_units.high - over_units.value, arm)
    return Score(over_units.value, low, min(high, 1.0))


def _percentiles(value: float, draws_B: Floats, num_units: int) -> Score:
    known_B = draws_B[~np.isnan(draws_B)]
    if num_units < 2 or len(known_B) == 0:
        return Score(value, math.nan, math.nan)
    low, high = np.percentile(known_B, [LOWER, UPPER])
    return Score(value, float(low), float(high))
