"""Accuracy and features when the same test images come from a simulated other stain bath or scanner.

A classifier (logistic regression of a fixed strength) is trained on the training images as they are, and tested on test
images under each of `features.shifts`. Features are compared with those of the same images as they are:

- cosine: of each image's two feature vectors, less the mean feature of the unchanged images. 1: nothing has moved.
- found again: share of the changed images whose nearest unchanged image, by that cosine, is themselves.

Shape suffixes: N images of the set, S of them looked at under shifts, M tested (an image of a cross-validation once in
each repeat), D features, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dino_path.config import EvaluationConfig
from dino_path.evaluation.labelled.datasets import LabelledSet
from dino_path.evaluation.labelled.division import Division
from dino_path.evaluation.measures.confusion import Floats, Ints
from dino_path.evaluation.measures.means import sample_of_mean
from dino_path.evaluation.measures.metrics import Metrics, measure
from dino_path.evaluation.measures.sample import Sample, Units
from dino_path.evaluation.protocols.cache import Features, Images
from dino_path.evaluation.protocols.knn import NeighbourIndex, unit_length
from dino_path.evaluation.protocols.linear import logistic
from dino_path.features.shifts import LEVELS, Shift, ShiftedImages
from dino_path.tiles.source import Subset

PIXEL_CHANGE_IMAGES = 100


@dataclass(frozen=True)
class UnderShift:
    """One model's test images under one shift."""

    metrics: Metrics
    cosine: Sample
    found: Sample


@dataclass(frozen=True)
class ShiftCurve:
    """One model's accuracy as images are, and under each shift."""

    unshifted: Metrics
    under: dict[Shift, UnderShift]


def shifts_of(config: EvaluationConfig) -> list[Shift]:
    """Every level of every shift that the settings name."""
    return [Shift(name, level) for name in config.shifts for level in LEVELS]


def images_to_shift(division: Division, config: EvaluationConfig) -> Ints:
    """Numbers (S,) of distinct tested images: all, or a random part of `config.shift_images`."""
    tested = np.unique(division.tested)
    distinct = tested[np.unique(division.labelled.content[tested], return_index=True)[1]]
    if len(distinct) > config.shift_images:
        distinct = np.random.default_rng(config.seed).choice(distinct, config.shift_images, replace=False)
    return np.sort(distinct)


def shifted_images(labelled: LabelledSet, chosen_S: Ints, shift: Shift) -> Images:
    """The chosen images under a shift, to extract features of."""
    key = hashlib.sha256(f"{labelled.content_digest} {shift}".encode() + chosen_S.tobytes()).hexdigest()
    return Images(ShiftedImages(Subset(labelled.source, chosen_S), shift), key, f"features, {shift}")


def pixel_change(labelled: LabelledSet, chosen_S: Ints, shift: Shift) -> float:
    """Mean absolute change that the shift makes to a grey level (0 to 255), over some of the images."""
    changes = []
    for number in chosen_S[:: max(1, len(chosen_S) // PIXEL_CHANGE_IMAGES)]:
        image = labelled.source.read_image(int(number))
        changes.append(np.abs(shift.apply(image).astype(np.int16) - image).mean())
    return float(np.mean(changes))


def accuracy_under_shifts(
    features_ND: Features, shifted: Mapping[Shift, Features], division: Division, chosen_S: Ints,
    config: EvaluationConfig,
) -> ShiftCurve:  # fmt: skip
    """Accuracy and stability of one model.

    Args:
        shifted: (S, D) features of the chosen images under each shift.
    """
    labelled = division.labelled
    queries = [np.asarray(features_ND[chosen_S]), *map(np.asarray, shifted.values())]
    place_N = np.full(len(labelled.labels), -1)
    place_N[chosen_S] = np.arange(len(chosen_S))
    tested, scores = [], []
    for split in division.splits:
        place = place_N[split.part("test")]
        place = place[place >= 0]
        if not len(place):
            continue
        train = split.part("train")
        stacked = np.concatenate([query[place] for query in queries])
        probe = logistic(np.asarray(features_ND[train]), split.labels[train], stacked)
        tested.append(chosen_S[place])
        scores.append(probe.scores.reshape(len(queries), len(place), -1))
    tested_M, scores_M = np.concatenate(tested), np.concatenate(scores, axis=1)

    def metrics(scores_MC: Floats) -> Metrics:
        return measure(
            labelled.labels[tested_M], scores_MC.argmax(axis=1).astype(np.int64), scores_MC, _units(labelled, tested_M),
            num_bootstrap=config.num_bootstrap, seed=config.seed,
        )  # fmt: skip

    unshifted, *changed = map(metrics, scores_M)
    stability = [_stability(queries[0], query, _units(labelled, chosen_S), config) for query in queries[1:]]
    under = {
        shift: UnderShift(one, cosine, found)
        for shift, one, (cosine, found) in zip(shifted, changed, stability, strict=True)
    }
    return ShiftCurve(unshifted, under)


def _stability(
    before_SD: NDArray[np.float32], after_SD: NDArray[np.float32], units: Units, config: EvaluationConfig
) -> tuple[Sample, Sample]:
    mean_D = before_SD.mean(axis=0, dtype=np.float64).astype(np.float32)
    before_SD, after_SD = unit_length(before_SD - mean_D), unit_length(after_SD - mean_D)
    cosine_S = (before_SD.astype(np.float64) * after_SD).sum(axis=1)
    nearest = np.concatenate([found[:, 0] for _, _, found in NeighbourIndex(before_SD, "flat").search(after_SD, 1)])
    found_S = (nearest == np.arange(len(before_SD))).astype(np.float64)
    cosine, found = (
        sample_of_mean(values, units, num_bootstrap=config.num_bootstrap, seed=config.seed)
        for values in (cosine_S, found_S)
    )
    return cosine, found


def _units(labelled: LabelledSet, numbers: Sequence[int] | Ints) -> Units:
    """What intervals over these images are drawn from; an image that is tested in several repeats is one."""
    if labelled.groups is None:
        return Units("images", np.unique(numbers, return_inverse=True)[1].astype(np.int64))
    return Units.of(labelled.groups[numbers], labelled.group_kind, len(numbers))
