"""Means of a value of each image, over all images and over classes, with their variation with the tested units.

Shape suffixes: N test images, C classes, G units, B bootstrap resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dino_path.evaluation.measures.confusion import Floats, Ints, mean_where_known
from dino_path.evaluation.measures.intervals import LeftOut, Score, degrees_of_freedom
from dino_path.evaluation.measures.sample import Sample, Units, resamples


def mean_score(values_N: Floats, units: Units, *, num_bootstrap: int, seed: int) -> Score:
    """Mean of a value between 0 and 1 of each image, with its interval."""
    return sample_of_mean(values_N, units, num_bootstrap=num_bootstrap, seed=seed).score()


def sample_of_mean(values_N: Floats, units: Units, *, num_bootstrap: int, seed: int) -> Sample:
    """Mean of any value of each image, and how it varies with the units that were drawn."""
    total_G = np.bincount(units.index, values_N, minlength=units.count)
    count_G = np.bincount(units.index, minlength=units.count)
    draws = [(weights @ total_G) / (weights @ count_G) for weights in resamples(units, num_bootstrap, seed)]
    value, rest = float(values_N.mean()), max(len(values_N) - 1, 1)
    with np.errstate(invalid="ignore"):
        without_G = (total_G.sum() - total_G) / (len(values_N) - count_G)
    left_out = LeftOut(without_G - value, (value - values_N) / rest, degrees_of_freedom(count_G[:, None]))
    return Sample(value, np.concatenate(draws), left_out)


@dataclass(frozen=True)
class ClassMeans:
    """Means of a value of each image: over all images, over classes that count the same, and over each class."""

    overall: Sample
    balanced: Sample
    by_class: tuple[Sample, ...]


def class_means(
    values_N: Floats, labels_N: Ints, num_classes: int, units: Units, *, num_bootstrap: int, seed: int
) -> ClassMeans:
    """Means of a value between 0 and 1 of each image, in all three ways; NaN of a class that does not occur."""
    total_GC, count_GC = (
        np.bincount(units.index * num_classes + labels_N, weight_N, units.count * num_classes).reshape(-1, num_classes)
        for weight_N in (values_N, np.ones(len(values_N)))
    )
    total_C, count_C, class_NC = total_GC.sum(axis=0), count_GC.sum(axis=0), np.eye(num_classes)[labels_N]
    of_all = _class_means(total_C, count_C)
    drawn = np.concatenate(
        [_class_means(weights @ total_GC, weights @ count_GC) for weights in resamples(units, num_bootstrap, seed)]
    )
    of_units = _class_means(total_C - total_GC, count_C - count_GC) - of_all
    of_images = _class_means(total_C - values_N[:, None] * class_NC, count_C - class_NC) - of_all
    freedom = [
        degrees_of_freedom(counts)
        for counts in (count_GC.sum(axis=1, keepdims=True), count_GC, *np.split(count_GC, num_classes, axis=1))
    ]
    samples = [
        Sample(float(value), drawn[:, at], LeftOut(of_units[:, at], of_images[:, at], freedom[at]))
        for at, value in enumerate(of_all)
    ]
    return ClassMeans(samples[0], samples[1], tuple(samples[2:]))


def _class_means(total_BC: NDArray[Any], count_BC: NDArray[Any]) -> Floats:
    """(B, 2 + C): the mean over all, that over classes, and that of each class."""
    with np.errstate(invalid="ignore"):
        mean_BC = total_BC / count_BC
        overall = total_BC.sum(axis=-1, keepdims=True) / count_BC.sum(axis=-1, keepdims=True)
    return np.concatenate([overall, mean_where_known(mean_BC)[..., None], mean_BC], axis=-1)
