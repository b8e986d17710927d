"""Several models on several labelled sets: mean, mean rank and differences, with intervals over the tested groups.

The sets are taken as they are: intervals are over the groups (patients, slides, images) within each set, and say
nothing of sets that are not among them. The models of a set share its resamples (paired); sets are independent of one
another.

Shape suffixes: M models, B resamples, S sets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dino_path.evaluation.measures.confusion import Floats
from dino_path.evaluation.measures.intervals import (
    LEAST_FREEDOM,
    UPPER,
    Score,
    difference_interval,
    score_interval,
)
from dino_path.evaluation.measures.sample import BOOTSTRAP_FREEDOM, Sample

NORMAL_QUANTILE = 1.959964


@dataclass(frozen=True)
class StandardError:
    """Of a mean over sets, with its degrees of freedom (Satterthwaite 1946)."""

    error: float
    freedom: float

    def standard_error(self) -> float:
        return self.error


def mean_over_sets(samples_S: Sequence[Sample], *, lowest: float = 0.0) -> Score:
    """The plain mean of one metric over sets.

    Below 100 degrees of freedom the interval is Student's t of the sets' jackknife variances put together; from there
    on it is the percentiles of the sets' bootstraps put together.

    Args:
        samples_S: one for each set; their numbers of groups may differ.
        lowest: that the metric can be.
    """
    value, spread = _mean(samples_S)
    if spread.freedom < BOOTSTRAP_FREEDOM:
        return score_interval(value, spread, lowest=lowest)
    return _percentiles(value, _draws_of_mean(samples_S))


def mean_difference(samples_S: Sequence[Sample], others_S: Sequence[Sample], *, lowest: float = 0.0) -> Score:
    """The mean over sets of one model minus another's, paired within each set; interval as of `mean_over_sets`."""
    differences = [one - other for one, other in zip(samples_S, others_S, strict=True)]
    value, spread = _mean(differences)
    if spread.freedom < BOOTSTRAP_FREEDOM:
        return difference_interval(value, spread, widest=1 - lowest)
    return _percentiles(value, _draws_of_mean(differences))


def mean_ranks(samples: Mapping[str, Sequence[Sample]]) -> dict[str, Score]:
    """The mean over sets of each model's rank among all (1 is the best, equal ones share the mean of their ranks).

    The interval is for the mean rank to expect of as many other groups of the same sets. A resample adds noise to what
    is noisy already, and so draws the ranks of close models together: its percentiles alone held that rank in 36 to
    99 % of simulated suites. Their reflection about the observed rank errs to the other side, and the wider end of both
    held it in 92 to 99 % (`benchmarks/evaluation/ranks.py`). The rank that infinitely many groups would give is another
    number: where models are nearly equal no such interval holds it.

    Few groups widen a set's resamples by Student's t; a set with too few for any interval leaves all without one.

    Args:
        samples: of the same sets in the same order, by model.
    """
    values_SM = np.array([[sample.value for sample in of_model] for of_model in samples.values()]).T
    observed_M = _ranks(values_SM).mean(axis=0)
    of_sets = list(zip(*samples.values(), strict=True))
    if any(_freedom(of_set) < LEAST_FREEDOM for of_set in of_sets):
        return {name: Score(float(rank), math.nan, math.nan) for name, rank in zip(samples, observed_M, strict=True)}
    num_draws = min(len(sample.draws) for of_set in of_sets for sample in of_set)
    ranks_BM = np.mean([_ranks(_draws_of_set(s, number, num_draws)) for number, s in enumerate(of_sets)], axis=0)
    low_M, high_M = np.percentile(ranks_BM, [100 - 100 * UPPER, 100 * UPPER], axis=0)
    lower_M = np.maximum(np.minimum(low_M, 2 * observed_M - high_M), 1.0)
    upper_M = np.minimum(np.maximum(high_M, 2 * observed_M - low_M), float(len(samples)))
    return {
        name: Score(float(rank), float(low), float(high))
        for name, rank, low, high in zip(samples, observed_M, lower_M, upper_M, strict=True)
    }


def _ranks(values_XM: Floats) -> Floats:
    """Ranks (..., M) among the last axis, 1 for the largest."""
    above = (values_XM[..., None, :] > values_XM[..., :, None]).sum(axis=-1)
    equal = (values_XM[..., None, :] == values_XM[..., :, None]).sum(axis=-1)
    ranks: Floats = 1 + above + (equal - 1) / 2
    return ranks


def _draws_of_set(samples_M: Sequence[Sample], number: int, num_draws: int) -> Floats:
    """Resamples (B, M) of one set about its values: those that all models know, widened for few groups."""
    from scipy.special import stdtrit

    draws_BM = np.stack([sample.draws for sample in samples_M], axis=1)
    value_M = np.array([sample.value for sample in samples_M])
    freedom = _freedom(samples_M)
    widened = 1.0 if freedom >= BOOTSTRAP_FREEDOM else float(stdtrit(freedom, UPPER)) / NORMAL_QUANTILE
    drawn: Floats = value_M + widened * (draws_BM[_chosen(draws_BM, number, num_draws)] - value_M)
    return drawn


def _chosen(draws_BM: Floats, number: int, num_draws: int) -> NDArray[np.int64]:
    """Which resamples of a set are combined with those of the other sets.

    Sets of as many groups have the same numbers drawn; choosing again makes them independent, and leaves out those
    that have no value.
    """
    known = np.flatnonzero(~np.isnan(draws_BM).any(axis=1))
    return np.random.default_rng(number).choice(known, num_draws)


def _draws_of_mean(samples_S: Sequence[Sample]) -> Floats:
    num_draws = min(len(sample.draws) for sample in samples_S)
    draws = [s.draws[_chosen(s.draws[:, None], number, num_draws)] for number, s in enumerate(samples_S)]
    mean_B: Floats = np.mean(draws, axis=0)
    return mean_B


def _mean(samples_S: Sequence[Sample]) -> tuple[float, StandardError]:
    """The mean over sets and its standard error; no freedom where a set has too few groups."""
    value = float(np.mean([sample.value for sample in samples_S]))
    variance_S = np.array([sample.left_out.standard_error() ** 2 for sample in samples_S])
    freedom_S = np.array([sample.left_out.freedom for sample in samples_S])
    if freedom_S.min() < LEAST_FREEDOM:
        return value, StandardError(math.nan, 0.0)
    if not variance_S.any():
        return value, StandardError(0.0, float(freedom_S.min()))
    freedom = variance_S.sum() ** 2 / (variance_S**2 / freedom_S).sum()
    return value, StandardError(math.sqrt(variance_S.sum()) / len(samples_S), float(freedom))


def _freedom(samples_M: Sequence[Sample]) -> float:
    return min(sample.left_out.freedom for sample in samples_M)


def _percentiles(value: float, draws_B: Floats) -> Score:
    low, high = np.percentile(draws_B, [100 - 100 * UPPER, 100 * UPPER])
    return Score(value, float(low), float(high))
