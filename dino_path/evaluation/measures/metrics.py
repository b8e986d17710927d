"""How good predictions are, each number with its 95 % confidence interval.

Intervals are over units: patients or slides where the data name them, else images. Tiles of one slide are alike, so an
interval over tiles would be far too narrow (cluster bootstrap: Field and Welsh 2007). Over many units they are
percentile bootstraps; over fewer, where those are too narrow, one unit is left out and Student's t used (`intervals`).

Shape suffixes: N test images, C classes, G units, B bootstrap resamples, L draws of the labelled images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dino_path.evaluation.measures.calibration import (
    Bin,
    calibration_numbers,
    calibration_sums,
    ece_if_calibrated,
    reliability,
)
from dino_path.evaluation.measures.confusion import (
    Floats,
    Ints,
    Margins,
    area_sums,
    areas,
    areas_left_out,
    class_scores,
    class_sums,
    confusion_matrix,
    summarise,
    summary_of,
)
from dino_path.evaluation.measures.counts import (
    add_sums,
    counts_of_classes,
    margins_without,
    parts_of_classes,
    resampled_margins,
    sparse_counts,
    summary_without,
)
from dino_path.evaluation.measures.intervals import LeftOut, Score, degrees_of_freedom
from dino_path.evaluation.measures.sample import UPPER, Sample, Units, interval_in_words, mean_sample, resamples

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "kappa", "auroc", "ece", "brier")
CLASS_METRICS = ("recall", "precision", "f1", "auroc")
LOWEST = {"kappa": -1.0}  # of a metric; 0 for the others
HIGHEST = {"brier": 2.0}  # of a metric; 1 for the others


@dataclass(frozen=True)
class Metrics:
    """All numbers of one set of predictions.

    Attributes:
        auroc: mean of the one-versus-rest areas under the ROC curve.
        ece, brier: how far the class scores, read as probabilities, are from what happened (`calibration`): 0 is best.
        ece_if_calibrated: the ECE of as many images whose probabilities are true.
        reliability: the points of the reliability curve.
        by_class: recall, precision, f1 and auroc (one versus rest) of each class, in class order; NaN where a class was
            never predicted or does not occur.
        confusion: (C, C) counts, rows are true classes.
        unit: what the intervals are over, and num_units how many of them were tested.
        samples: of each of METRICS; not part of the record.
    """

    accuracy: Score
    balanced_accuracy: Score
    macro_f1: Score
    kappa: Score
    auroc: Score
    ece: Score
    brier: Score
    ece_if_calibrated: float
    reliability: tuple[Bin, ...]
    by_class: dict[str, tuple[Score, ...]]
    confusion: Ints
    num_images: int
    num_units: int
    unit: str
    samples: Mapping[str, Sample] = field(repr=False, compare=False)

    def record(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """For JSON."""
        return {
            **{name: getattr(self, name).record() for name in METRICS},
            "ece_if_calibrated": self.ece_if_calibrated,
            "reliability": [one.record() for one in self.reliability],
            "recall": self._class_records("recall", classes),
            "by_class": {name: self._class_records(name, classes) for name in self.by_class},
            "confusion": self.confusion.tolist(),
            "num_test_images": self.num_images,
            "interval": self.interval,
        }

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the interval of balanced accuracy."""
        return self.samples["balanced_accuracy"].left_out.freedom

    @property
    def interval(self) -> str:
        """Description of the interval of balanced accuracy."""
        return interval_in_words(self.freedom, self.num_units, self.unit)

    def _class_records(self, name: str, classes: tuple[str, ...]) -> dict[str, dict[str, float | None]]:
        return {label: score.record() for label, score in zip(classes, self.by_class[name], strict=True)}


def measure(labels_N: Ints, predicted_N: Ints, scores_NC: Floats, units: Units, *, num_bootstrap: int, seed: int
            ) -> Metrics:  # fmt: skip
    """Accuracy, balanced accuracy, macro F1, Cohen's kappa, AUROC, ECE and Brier score, and the scores of each class.

    Each has its interval.

    Args:
        scores_NC: class probabilities; rows sum to 1.
    """
    num_classes, num_images = scores_NC.shape[1], len(labels_N)
    confusion_CC = confusion_matrix(labels_N, predicted_N, num_classes)
    of_class = class_scores(Margins.of(confusion_CC)) | {
        "auroc": areas(labels_N, scores_NC, np.ones((1, num_images)))[0]
    }
    sums_GS = calibration_sums(labels_N, predicted_N, scores_NC, units.index, units.count)
    sums_S = sums_GS.sum(axis=0)
    value = summary_of(class_sums(Margins.of(confusion_CC)) | area_sums(of_class["auroc"]))
    value |= calibration_numbers(sums_S, np.array(num_images))
    # The same numbers of each resample, and of all but one unit or image.
    margins_BC = resampled_margins(labels_N, predicted_N, num_classes, units, num_bootstrap, seed)
    areas_BC = np.concatenate(
        [areas(labels_N, scores_NC, weights[:, units.index]) for weights in resamples(units, num_bootstrap, seed)]
    )
    drawn_of_class = class_scores(margins_BC) | {"auroc": areas_BC}
    drawn = summary_of(class_sums(margins_BC) | area_sums(areas_BC))
    resampled_S = np.concatenate([weights @ sums_GS for weights in resamples(units, num_bootstrap, seed)])
    drawn |= calibration_numbers(resampled_S, margins_BC.true.sum(axis=1))
    freedom = dict(zip(METRICS, _freedom(labels_N, num_classes, units), strict=True))

    image_units = Units("images", np.arange(num_images))
    sums_of_units: dict[str, Floats] = {}
    sums_of_images: dict[str, Floats] = {}
    by_class: dict[str, list[Score]] = {name: [] for name in CLASS_METRICS}
    for classes in parts_of_classes(num_classes, num_images):
        parts = []
        for one, sums in ((units, sums_of_units), (image_units, sums_of_images)):
            margins = margins_without(labels_N, predicted_N, one, classes)
            left = areas_left_out(labels_N, scores_NC, one.index, one.count, classes)
            add_sums(sums, class_sums(margins) | area_sums(left))
            parts.append(class_scores(margins) | {"auroc": left})
        counts = counts_of_classes(labels_N, predicted_N, units, classes)
        for at, label in enumerate(classes):
            degrees = _freedom_of_class(Margins(counts.hits[:, at], counts.true[:, at], counts.predicted[:, at]), units)
            for name in CLASS_METRICS:
                whole = of_class[name][label]
                left_out = LeftOut(parts[0][name][:, at] - whole, parts[1][name][:, at] - whole, degrees[name])
                by_class[name].append(Sample(float(whole), drawn_of_class[name][:, label], left_out).score())
    images_G = np.bincount(units.index, minlength=units.count)
    of_units = summary_of(sums_of_units) | calibration_numbers(sums_S - sums_GS, num_images - images_G)
    sums_NS = calibration_sums(labels_N, predicted_N, scores_NC, image_units.index, num_images)
    of_images = summary_of(sums_of_images) | calibration_numbers(sums_S - sums_NS, np.array(num_images - 1))
    samples = {
        name: Sample(
            float(value[name]),
            drawn[name],
            LeftOut(of_units[name] - value[name], of_images[name] - value[name], freedom[name]),
        )
        for name in METRICS
    }
    return Metrics(
        **{name: samples[name].score(**_ends(name)) for name in METRICS},
        ece_if_calibrated=ece_if_calibrated(scores_NC, seed=seed),
        reliability=reliability(labels_N, predicted_N, scores_NC),
        by_class={name: tuple(scores) for name, scores in by_class.items()},
        confusion=confusion_CC,
        num_images=num_images,
        num_units=units.count,
        unit=units.name,
        samples=samples,
    )


def paired_difference(metrics: Metrics, reference: Metrics) -> dict[str, Score]:
    """Metrics minus reference, each of METRICS, both measured on the same images with the same resamples.

    That leaves out what they have in common (hard slides are hard for both): the interval is narrower, and rightly so,
    than two intervals side by side suggest.
    """
    return {name: (metrics.samples[name] - reference.samples[name]).difference(**_ends(name)) for name in METRICS}


def mean_over_draws(
    labels_N: Ints, predicted_LN: Ints, reference_LN: Ints | None, units: Units, *, num_classes: int,
    num_bootstrap: int, seed: int,
) -> dict[str, Score]:  # fmt: skip
    """Mean of each metric over L sets of predictions of the same images, made from L draws of the labelled images.

    The interval holds what either choice may do: the interval over units of the mean, and the t interval over the
    draws, put together by their squares (Zou and Donner 2008). Five draws resampled would give too narrow an interval:
    five values know their spread badly.

    Args:
        reference_LN: the other model's, from the same label draws: the result is the mean difference. None: no other.
    """
    own = [_samples_of_draw(labels_N, one_N, units, num_classes, num_bootstrap, seed) for one_N in predicted_LN]
    if reference_LN is not None:
        others = [_samples_of_draw(labels_N, one_N, units, num_classes, num_bootstrap, seed) for one_N in reference_LN]
        own = [{name: one[name] - other[name] for name in one} for one, other in zip(own, others, strict=True)]
    result = {}
    for name in own[0]:
        values_L = np.array([samples[name].value for samples in own])
        mean = mean_sample([samples[name] for samples in own])
        over_units = mean.score(**_ends(name)) if reference_LN is None else mean.difference(**_ends(name))
        result[name] = over_units if len(values_L) == 1 else _widened(over_units, values_L)
    return result


def _samples_of_draw(
    labels_N: Ints, predicted_N: Ints, units: Units, num_classes: int, num_bootstrap: int, seed: int
) -> dict[str, Sample]:
    """The metrics that need no scores."""
    drawn = summary_of(class_sums(resampled_margins(labels_N, predicted_N, num_classes, units, num_bootstrap, seed)))
    of_units = summary_without(labels_N, predicted_N, units, num_classes)
    of_images = summary_without(labels_N, predicted_N, Units("images", np.arange(len(labels_N))), num_classes)
    value = summarise(confusion_matrix(labels_N, predicted_N, num_classes))
    return {
        name: Sample(
            float(value[name]), drawn[name],
            LeftOut(of_units[name] - value[name], of_images[name] - value[name], freedom),
        )
        for name, freedom in zip(value, _freedom(labels_N, num_classes, units), strict=False)
    }  # fmt: skip


def _widened(over_units: Score, values_L: Floats) -> Score:
    """The interval with that of the mean of L values added, by the squares of their arms; scores end at 1."""
    from scipy.special import stdtrit

    arm = float(stdtrit(len(values_L) - 1, UPPER / 100) * values_L.std(ddof=1) / math.sqrt(len(values_L)))
    low = over_units.value - math.hypot(over_units.value - over_units.low, arm)
    high = over_units.value + math.hypot(over_units.high - over_units.value, arm)
    return Score(over_units.value, low, min(high, 1.0))


def _freedom(labels_N: Ints, num_classes: int, units: Units) -> tuple[float, ...]:
    """Degrees of freedom of each of METRICS, in its order."""
    of_all = degrees_of_freedom(np.bincount(units.index, minlength=units.count)[:, None])
    of_classes = degrees_of_freedom(sparse_counts(labels_N, np.ones(len(labels_N), bool), num_classes, units))
    return of_all, of_classes, of_classes, min(of_all, of_classes), of_classes, of_all, of_all


def _freedom_of_class(counts_G: Margins, units: Units) -> dict[str, float]:
    """Degrees of freedom of each of CLASS_METRICS of one class."""
    images_G = np.bincount(units.index, minlength=units.count)
    columns = {
        "recall": counts_G.true[:, None],
        "precision": counts_G.predicted[:, None],
        "f1": (counts_G.true + counts_G.predicted)[:, None],
        "auroc": np.stack([counts_G.true, images_G - counts_G.true], axis=1),
    }
    return {name: degrees_of_freedom(counts) for name, counts in columns.items()}


def _ends(name: str) -> dict[str, float]:
    """The range of a metric."""
    return {"lowest": LOWEST.get(name, 0.0), "highest": HIGHEST.get(name, 1.0)}
