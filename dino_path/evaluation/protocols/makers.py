"""How much features encode the maker of the slide (centre or scanner) relative to the tissue, measured by neighbours.

An image's neighbours are the most similar others by cosine, in float64, of other patients (slides, images). Four kinds
matter: of the same class or another, of the same maker or another. "Maker" here is a centre or a scanner.

- robustness index: of the k nearest neighbours, those of the same class and another maker, over these and those of
  another class and the same maker. k is the one of KS whose k-NN tells the classes best. Above 0.5 tissue outweighs
  the maker. Source: de Jong et al. 2025 (arXiv 2501.18055); PathoROB, Koemen et al. 2025 (arXiv 2507.17845).
- CRoMa, of each image: (d_other - d_same) / (d_other + d_same), d_same being the mean distance to the 5 nearest of the
  same class and another maker, d_other to the 5 nearest of another class and the same maker; its median, and the mean
  of its lowest tenth. Above 0 tissue is nearer. Source: Grisi et al. 2026 (arXiv 2607.25497), evaluation design "all".

Shape suffixes: N images, D features, K neighbours, M makers, C classes, Q queries of a chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dino_path.evaluation.labelled.datasets import LabelledSet
from dino_path.evaluation.measures.confusion import Floats, Ints, confusion_matrix, summarise
from dino_path.evaluation.measures.intervals import LeftOut
from dino_path.evaluation.measures.means import sample_of_mean
from dino_path.evaluation.measures.sample import Sample, Units

MAX_IMAGES = 10_000  # 10,000 x 384 features: some 15 CPU seconds
KS = (5, 11, 21, 51, 101)
CROMA_NEIGHBOURS = 5
TAIL = 0.1
QUERIES_PER_CHUNK = 512
LEAST_IN_TAIL = 10  # images


@dataclass(frozen=True)
class Cohort:
    """The distinct images for the figures of centres (or scanners).

    Attributes:
        kind: "centre" or "scanner".
        chosen: (N,) numbers in the labelled set: one of each content, a random part where there are too many.
        labels, makers: (N,) class and maker, as numbers into `classes` and `names`.
        groups: (N,) the patient or slide, else the image, whose own images are no neighbours.
        units: what intervals are over.
    """

    kind: str
    chosen: Ints
    labels: Ints
    makers: Ints
    groups: Ints
    classes: tuple[str, ...]
    names: tuple[str, ...]
    units: Units

    def counts(self) -> dict[str, dict[str, int]]:
        """Images by maker and class."""
        return {
            name: {
                label: int(((self.makers == maker) & (self.labels == number)).sum())
                for number, label in enumerate(self.classes)
            }
            for maker, name in enumerate(self.names)
        }

    def units_by_maker(self) -> dict[str, int]:
        """Patients (slides, images) of each maker."""
        return {name: len(np.unique(self.units.index[self.makers == number])) for number, name in enumerate(self.names)}


def cohorts(labelled: LabelledSet, *, seed: int) -> list[Cohort]:
    """One for the centres and one for the scanners, where the data name at least two."""
    found = []
    for kind, values in (("centre", labelled.centres), ("scanner", labelled.scanners)):
        if values is None or len(np.unique(values)) < 2:
            continue
        chosen = np.unique(labelled.content, return_index=True)[1]
        if len(chosen) > MAX_IMAGES:
            chosen = np.random.default_rng(seed).choice(chosen, MAX_IMAGES, replace=False)
        chosen = np.sort(chosen).astype(np.int64)
        names, makers = np.unique(values[chosen], return_inverse=True)
        groups = None if labelled.groups is None else labelled.groups[chosen]
        units = Units.of(groups, labelled.group_kind, len(chosen))
        found.append(
            Cohort(
                kind, chosen, labelled.labels[chosen], makers.astype(np.int64), units.index, labelled.classes,
                tuple(map(str, names)), units,
            )
        )  # fmt: skip
    return found


@dataclass(frozen=True)
class Neighbourhood:
    """The neighbour figures of one model.

    Attributes:
        index_by_k: robustness index for each of KS below N; k is that of `index`.
        support: share of the images that have a neighbour of either kind among the k.
        num_undefined: images without CRoMa: too few of either kind, or all at distance 0.
    """

    index: Sample
    k: int
    index_by_k: dict[int, float]
    support: float
    croma: Sample
    croma_tail: Sample
    num_undefined: int


def neighbourhood(features_ND: NDArray[np.float32], cohort: Cohort, *, num_bootstrap: int, seed: int) -> Neighbourhood:
    """Robustness index and CRoMa of the images of a cohort.

    Args:
        features_ND: of these images, in their order.
    """
    kinds_NK, croma_N = _look_around(features_ND.astype(np.float64), cohort)
    ks = [k for k in KS if k < len(croma_N)] or [len(croma_N) - 1]
    tells = {k: _balanced_accuracy(kinds_NK[:, :k], cohort) for k in ks}
    best = max(ks, key=lambda k: tells[k])
    by_k = {k: _wanted_and_confounded(kinds_NK[:, :k], cohort) for k in ks}

    def sample(values_N: Floats) -> Sample:
        return sample_of_mean(values_N, cohort.units, num_bootstrap=num_bootstrap, seed=seed)

    wanted_N, confounded_N = by_k[best]
    known_N = ~np.isnan(croma_N)
    return Neighbourhood(
        index=sample(_around_ratio(wanted_N, wanted_N + confounded_N)),
        k=best,
        index_by_k={k: _ratio(wanted.sum(), (wanted + confounded).sum()) for k, (wanted, confounded) in by_k.items()},
        support=float((wanted_N + confounded_N > 0).mean()),
        croma=sample(_around_median(croma_N, cohort.units)),
        croma_tail=sample(_around_tail(croma_N)),
        num_undefined=int((~known_N).sum()),
    )


def _look_around(features_ND: Floats, cohort: Cohort) -> tuple[Ints, Floats]:
    """Numbers (N, K) of the nearest images of other groups, -1 where there are no more, and CRoMa (N,) or NaN."""
    unit_ND = features_ND / np.maximum(np.linalg.norm(features_ND, axis=1, keepdims=True), 1e-12)
    num_images = len(unit_ND)
    k = min(max(KS), num_images - 1)
    neighbours, croma = [], []
    for start in range(0, num_images, QUERIES_PER_CHUNK):
        rows = slice(start, start + QUERIES_PER_CHUNK)
        distance_QN = np.clip(1 - unit_ND[rows] @ unit_ND.T, 0, 2)
        distance_QN[cohort.groups[rows, None] == cohort.groups] = np.inf
        nearest_QK = np.argpartition(distance_QN, k - 1, axis=1)[:, :k]
        nearest_QK.sort(axis=1)  # of equal distances the first image, whatever the partition did
        by_distance = np.argsort(np.take_along_axis(distance_QN, nearest_QK, axis=1), axis=1, kind="stable")
        nearest_QK = np.take_along_axis(nearest_QK, by_distance, axis=1)
        is_there_QK = np.isfinite(np.take_along_axis(distance_QN, nearest_QK, axis=1))
        neighbours.append(np.where(is_there_QK, nearest_QK, -1))
        is_class_QN = cohort.labels[rows, None] == cohort.labels
        is_maker_QN = cohort.makers[rows, None] == cohort.makers
        same_Q = _mean_of_nearest(distance_QN, is_class_QN & ~is_maker_QN)
        other_Q = _mean_of_nearest(distance_QN, ~is_class_QN & is_maker_QN)
        with np.errstate(invalid="ignore"):
            croma.append(np.where(np.isfinite(same_Q + other_Q), (other_Q - same_Q) / (other_Q + same_Q), np.nan))
    return np.concatenate(neighbours).astype(np.int64), np.concatenate(croma)


def _mean_of_nearest(distance_QN: Floats, is_kind_QN: NDArray[np.bool_]) -> Floats:
    """Mean distance (Q,) of the CROMA_NEIGHBOURS nearest of a kind; infinite where there are fewer."""
    m = CROMA_NEIGHBOURS
    if distance_QN.shape[1] < m:
        return np.full(len(distance_QN), np.inf)
    nearest = np.partition(np.where(is_kind_QN, distance_QN, np.inf), m - 1, axis=1)[:, :m]
    mean: Floats = nearest.mean(axis=1)
    return mean


def _wanted_and_confounded(neighbour_NK: Ints, cohort: Cohort) -> tuple[Floats, Floats]:
    """How many of the neighbours (N,) are of the same class and another maker, and the other way round."""
    is_there = neighbour_NK >= 0
    is_class = cohort.labels[neighbour_NK] == cohort.labels[:, None]
    is_maker = cohort.makers[neighbour_NK] == cohort.makers[:, None]
    wanted, confounded = is_there & is_class & ~is_maker, is_there & ~is_class & is_maker
    return wanted.sum(axis=1).astype(np.float64), confounded.sum(axis=1).astype(np.float64)


def _balanced_accuracy(neighbour_NK: Ints, cohort: Cohort) -> float:
    """Of the majority of the neighbours' classes, one vote each; of equal votes the first class."""
    votes_NC = np.stack(
        [((cohort.labels[neighbour_NK] == label) & (neighbour_NK >= 0)).sum(axis=1)
         for label in range(len(cohort.classes))], axis=1,
    )  # fmt: skip
    has_votes = votes_NC.any(axis=1)
    predicted = votes_NC.argmax(axis=1).astype(np.int64)
    confusion = confusion_matrix(cohort.labels[has_votes], predicted[has_votes], len(cohort.classes))
    return float(summarise(confusion)["balanced_accuracy"])


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else math.nan


# What follows gives each image a value whose mean is the statistic, and whose spread is that of the statistic to first
# order (its influence function), so that patients can be left out and models compared as for any mean.


def _around_ratio(part_N: Floats, whole_N: Floats) -> Floats:
    """Of the sum of the parts over the sum of the wholes; NaN where the whole is nothing."""
    ratio = _ratio(part_N.sum(), whole_N.sum())
    around_N: Floats = ratio + (part_N - ratio * whole_N) / max(whole_N.mean(), 1e-300)
    return around_N


def _around_median(values_N: Floats, units: Units) -> Floats:
    """Of the median of the values that are known.

    The density there is that of the values between one standard error (over units) of the share on either side
    (Woodruff 1952).
    """
    known_N = ~np.isnan(values_N)
    if not known_N.any():
        return np.full(len(values_N), np.nan)
    known = values_N[known_N]
    median = float(np.median(known))
    is_below = (values_N <= median)[known_N].astype(np.float64)
    deviation_G = np.bincount(units.index[known_N], is_below - is_below.mean(), minlength=units.count)
    over_units, over_images = math.sqrt((deviation_G**2).sum()) / len(known), 0.5 / math.sqrt(len(known))
    error = min(max(over_units, over_images), 0.25)
    low, high = np.quantile(known, [0.5 - error, 0.5 + error])
    influence = (is_below.mean() - is_below) * (high - low) / (2 * error)
    return _spread_out(median, influence, known_N)


def _around_tail(values_N: Floats) -> Floats:
    """Of the mean of the lowest tenth of the values that are known (its influence: Rockafellar and Uryasev 2000)."""
    known_N = ~np.isnan(values_N)
    if known_N.sum() < LEAST_IN_TAIL:
        return np.full(len(values_N), np.nan)
    known = values_N[known_N]
    quantile = np.quantile(known, TAIL)
    below = np.maximum(quantile - known, 0) / TAIL
    return _spread_out(float(known[known <= quantile].mean()), below.mean() - below, known_N)


def _spread_out(value: float, influence: Floats, known_N: NDArray[np.bool_]) -> Floats:
    """The value for all images, with the influence of those that are known."""
    values_N = np.full(len(known_N), value)
    values_N[known_N] += influence * len(known_N) / known_N.sum()
    return values_N


def of_unit_deviations(value: float, without_G: Floats, freedom: float, num_images: int, *, num_bootstrap: int,
                       seed: int) -> Sample:  # fmt: skip
    """A statistic that is known without each unit in turn; resamples follow to first order."""
    deviation_G = without_G - value
    num_units = len(deviation_G)
    weights = np.random.default_rng(seed).multinomial(num_units, np.full(num_units, 1 / num_units), num_bootstrap)
    draws = value - (weights - 1) @ deviation_G * (num_units - 1) / num_units
    return Sample(value, draws, LeftOut(deviation_G, np.zeros(num_images), freedom))
