"""How well predicted masks cover the true ones: Dice and IoU of each class, with 95 % confidence intervals.

Of a class with TP pixels in both masks, FP in the predicted one alone and FN in the true one alone:

    Dice = 2 TP / (2 TP + FP + FN)        (Dice 1945; the F1 score of pixels)
    IoU  = TP / (TP + FP + FN)            (Jaccard 1912)

A class that neither mask of an image has is not known there (NaN, never 1) and in no mean; one that is only predicted
has 0. Three averages: `image`, the mean over images; `patient`, the mean over patients (slides) of the Dice of all of
a patient's pixels; `pooled`, the Dice of all pixels together, in which large images and frequent tissue decide.

Shape suffixes: M tested images, C classes, G units (patients, slides or images), B bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dino_path.evaluation.measures.confusion import Floats, Ints, mean_where_known
from dino_path.evaluation.measures.intervals import LeftOut, Score, degrees_of_freedom
from dino_path.evaluation.measures.sample import Sample, Units, interval_in_words

Average = Literal["image", "patient", "pooled"]
Measure = Literal["dice", "iou"]
MEASURES: tuple[Measure, ...] = ("dice", "iou")
UNKNOWN = 255  # in a mask: nobody says what the pixel is, and it counts nowhere


@dataclass(frozen=True)
class Overlap:
    """Dice and IoU of one model's masks.

    Attributes:
        mean: over the classes that count, by average and measure.
        by_class: of every class in class order, by average and measure; NaN where a class is nowhere.
        interval: what the intervals are, in words.
        samples: of the means; not part of the record.
    """

    mean: Mapping[Average, Mapping[Measure, Score]]
    by_class: Mapping[Average, Mapping[Measure, tuple[Score, ...]]]
    interval: str
    samples: Mapping[tuple[Average, Measure], Sample] = field(repr=False, compare=False)

    def record(self, classes: Sequence[str]) -> dict[str, Any]:
        """For JSON."""
        return {
            "mean": {a: {m: score.record() for m, score in of.items()} for a, of in self.mean.items()},
            "by_class": {
                a: {m: {c: s.record() for c, s in zip(classes, scores, strict=True)} for m, scores in of.items()}
                for a, of in self.by_class.items()
            },
            "interval": self.interval,
        }


def mask_confusion(true_HW: NDArray[np.uint8], predicted_HW: NDArray[np.uint8], num_classes: int) -> Ints:
    """Pixels (C, C) of each true (row) and predicted class, without those that are UNKNOWN in the true mask."""
    is_known = true_HW != UNKNOWN
    cells = true_HW[is_known].astype(np.int64) * num_classes + predicted_HW[is_known]
    return np.bincount(cells, minlength=num_classes**2).astype(np.int64).reshape(num_classes, num_classes)


def class_overlap(confusion_CC: NDArray[Any]) -> dict[Measure, Floats]:
    """Dice and IoU (..., C) of each class; NaN where neither mask has it."""
    hits_C, size_C = _hits_and_size(confusion_CC)
    with np.errstate(invalid="ignore"):
        return {"dice": 2 * hits_C / size_C, "iou": hits_C / (size_C - hits_C)}


def measure_overlap(
    confusion_MCC: Ints, units: Units, counted: Sequence[int], *, num_bootstrap: int, seed: int
) -> Overlap:
    """Dice and IoU of the tested images. Equal seeds have equal resamples, so that differences are paired.

    Args:
        confusion_MCC: `mask_confusion` of each image.
        counted: the classes in the means.
    """
    rng = np.random.default_rng(seed)
    weights_BG = rng.multinomial(units.count, np.full(units.count, 1 / units.count), size=num_bootstrap)
    samples: dict[tuple[Average, Measure], Sample] = {}
    by_class: dict[Average, dict[Measure, tuple[Score, ...]]] = {}
    averages: tuple[Average, ...] = ("image", "pooled") if units.name == "images" else ("image", "patient", "pooled")
    for average in averages:
        by_class[average] = {}
        for measure in MEASURES:
            ratio = _ratio(confusion_MCC, units, average, measure)
            samples[average, measure] = ratio.sample(counted, weights_BG)
            scores = [ratio.sample([one], weights_BG).score() for one in range(confusion_MCC.shape[1])]
            by_class[average][measure] = tuple(scores)
    mean = {a: {m: samples[a, m].score() for m in MEASURES} for a in averages}
    interval = interval_in_words(samples["image", "dice"].left_out.freedom, units.count, units.name)
    return Overlap(mean, by_class, interval, samples)


def overlap_difference(mine: Overlap, other: Overlap) -> dict[Average, dict[Measure, Score]]:
    """The means of one model minus those of another, on the same images with the same resamples."""
    return {
        average: {m: (mine.samples[average, m] - other.samples[average, m]).difference() for m in MEASURES}
        for average in mine.mean
    }


@dataclass(frozen=True)
class _Ratio:
    """A score that is one sum over units divided by another, class by class.

    Attributes:
        over, under: (G, C) what each unit adds to the two sums.
        over_without, under_without: (M, C) the two sums without each image.
        counts: (G, C) what decides how much each unit counts in the degrees of freedom.
    """

    over: Floats
    under: Floats
    over_without: Floats
    under_without: Floats
    counts: Floats

    def sample(self, classes: Sequence[int], weights_BG: NDArray[np.integer]) -> Sample:
        """The mean over some classes, where known."""
        over_C, under_C = self.over.sum(axis=0), self.under.sum(axis=0)
        value = self._mean(over_C, under_C, classes)
        left_out = LeftOut(
            self._mean(over_C - self.over, under_C - self.under, classes) - value,
            self._mean(self.over_without, self.under_without, classes) - value,
            degrees_of_freedom(self.counts[:, list(classes)]),
        )
        draws_B = self._mean(weights_BG @ self.over, weights_BG @ self.under, classes)
        return Sample(float(value), draws_B, left_out)

    @staticmethod
    def _mean(over: Floats, under: Floats, classes: Sequence[int]) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            scores = np.where(under > 0, over / under, np.nan)
        return mean_where_known(scores[..., list(classes)])


def _ratio(confusion_MCC: Ints, units: Units, average: Average, measure: Measure) -> _Ratio:
    confusion_GCC = np.zeros((units.count, *confusion_MCC.shape[1:]), np.int64)
    np.add.at(confusion_GCC, units.index, confusion_MCC)
    if average == "pooled":
        over_MC, under_MC = _parts(confusion_MCC, measure)
        over_GC, under_GC = _parts(confusion_GCC, measure)
        true_GC = confusion_GCC.sum(axis=2).astype(np.float64)
        return _Ratio(over_GC, under_GC, over_GC.sum(axis=0) - over_MC, under_GC.sum(axis=0) - under_MC, true_GC)
    if average == "image":
        over_MC, under_MC = _known(class_overlap(confusion_MCC)[measure])
        over_GC, under_GC = np.zeros((2, units.count, over_MC.shape[1]))
        np.add.at(over_GC, units.index, over_MC)
        np.add.at(under_GC, units.index, under_MC)
        return _Ratio(over_GC, under_GC, over_GC.sum(axis=0) - over_MC, under_GC.sum(axis=0) - under_MC, under_GC)
    over_GC, under_GC = _known(class_overlap(confusion_GCC)[measure])
    # Without an image, its patient's score is that of the patient's other images.
    over_MC, under_MC = _known(class_overlap(confusion_GCC[units.index] - confusion_MCC)[measure])
    over_without_MC = over_GC.sum(axis=0) - over_GC[units.index] + over_MC
    under_without_MC = under_GC.sum(axis=0) - under_GC[units.index] + under_MC
    return _Ratio(over_GC, under_GC, over_without_MC, under_without_MC, under_GC)


def _known(scores: Floats) -> tuple[Floats, Floats]:
    """Scores with 0 where undefined, and a mask of defined scores (1, else 0)."""
    is_known = ~np.isnan(scores)
    return np.where(is_known, scores, 0.0), is_known.astype(np.float64)


def _parts(confusion_CC: NDArray[Any], measure: Measure) -> tuple[Floats, Floats]:
    """Numerator and denominator (..., C)."""
    hits_C, size_C = _hits_and_size(confusion_CC)
    return (2 * hits_C, size_C) if measure == "dice" else (hits_C, size_C - hits_C)


def _hits_and_size(confusion_CC: NDArray[Any]) -> tuple[Floats, Floats]:
    """Pixels in both masks, and the sum of the two masks' pixels, (..., C)."""
    hits_C = np.diagonal(confusion_CC, axis1=-2, axis2=-1).astype(np.float64)
    size_C = (confusion_CC.sum(axis=-1) + confusion_CC.sum(axis=-2)).astype(np.float64)
    return hits_C, size_C
