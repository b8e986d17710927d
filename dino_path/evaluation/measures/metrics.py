"""How good predictions are, each number with its 95 % confidence interval.

Intervals are over units: patients or slides where the data name them, else images. Tiles of one slide are alike, so an
interval over tiles would be far too narrow (cluster bootstrap: Field and Welsh 2007). Over many units they are
percentile bootstraps; over fewer, where those are too narrow, one unit is left out and Student's t used (`intervals`).

Shape suffixes: N test images, C classes, G units, B bootstrap resamples, L draws of the labelled images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

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
    mean_where_known,
    summarise,
    summary_of,
)
from dino_path.evaluation.measures.intervals import (
    LEAST_FREEDOM,
    LeftOut,
    Score,
    degrees_of_freedom,
    difference_interval,
    score_interval,
)
from dino_path.evaluation.measures.pairs import PairBlock

if TYPE_CHECKING:
    from scipy.sparse import csr_array

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "kappa", "auroc", "ece", "brier")
CLASS_METRICS = ("recall", "precision", "f1", "auroc")
LOWEST = {"kappa": -1.0}  # of a metric; 0 for the others
HIGHEST = {"brier": 2.0}  # of a metric; 1 for the others
# From here on percentiles of the bootstrap hold what they promise; at 50 patients not yet, where patients differ much
# (benchmarks/evaluation/coverage.py).
BOOTSTRAP_FREEDOM = 100
LOWER, UPPER = 2.5, 97.5
MAX_WEIGHTS_PER_CHUNK = 2**23
MAX_COUNTS_AT_ONCE = 2**22  # of images x classes


@dataclass(frozen=True)
class Units:
    """The units of intervals: `name` ("patients", "slides", "images"); `index` (N,) gives each test image's unit."""

    name: str
    index: Ints

    @property
    def count(self) -> int:
        return int(self.index.max()) + 1

    @classmethod
    def of(cls, groups_N: NDArray[np.str_] | None, group_kind: str | None, num_images: int) -> Units:
        """Units of test images with the groups `groups_N`; each image is a unit if groups are unknown."""
        if groups_N is None:
            return cls("images", np.arange(num_images))
        return cls(f"{group_kind}s", np.unique(groups_N, return_inverse=True)[1].astype(np.int64))


@dataclass(frozen=True)
class Sample:
    """One number of the tested images, and its variation with the tested units.

    Attributes:
        draws: (B,) over the resamples of units.
    """

    value: float
    draws: Floats
    left_out: LeftOut

    def __sub__(self, other: Sample) -> Sample:
        """The difference of two models on the same images, with the same resamples."""
        return Sample(self.value - other.value, self.draws - other.draws, self.left_out - other.left_out)

    def score(self, *, lowest: float = 0.0, highest: float = 1.0) -> Score:
        """With its interval, as a score between `lowest` and `highest`."""
        if self.left_out.freedom < BOOTSTRAP_FREEDOM:
            return score_interval(self.value, self.left_out, lowest=lowest, highest=highest)
        score = _percentiles(self.value, self.draws)
        # Where all are right (or all wrong) resampling sees no spread: `score_interval`'s bound stands in.
        bound = 0.025 ** (1 / (self.left_out.freedom + 1))
        if self.value >= highest:
            return Score(self.value, min(score.low, highest * bound), score.high)
        if self.value <= 0.0:
            return Score(self.value, score.low, max(score.high, highest * (1 - bound)))
        return score

    def difference(self, *, lowest: float = 0.0, highest: float = 1.0) -> Score:
        """With its interval, as a difference of scores between `lowest` and `highest`."""
        if self.left_out.freedom < BOOTSTRAP_FREEDOM:
            return difference_interval(self.value, self.left_out, widest=highest - lowest)
        return _percentiles(self.value, self.draws)


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


def interval_in_words(freedom: float, num_units: int, unit: str) -> str:
    """Description of an interval over `num_units` of `unit` ("patients", "slides" or "images")."""
    over = f"{num_units} test {unit}"
    if freedom < LEAST_FREEDOM:
        return f"no interval: too few {unit}, {over}; each class needs two, and all together three"
    if freedom < BOOTSTRAP_FREEDOM:
        return f"95 % interval over {over} (Student's t, {freedom:.1f} degrees of freedom)"
    return f"95 % interval over {over} (bootstrap)"


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
    margins_BC = _resampled_margins(labels_N, predicted_N, num_classes, units, num_bootstrap, seed)
    areas_BC = np.concatenate(
        [areas(labels_N, scores_NC, weights[:, units.index]) for weights in _resamples(units, num_bootstrap, seed)]
    )
    drawn_of_class = class_scores(margins_BC) | {"auroc": areas_BC}
    drawn = summary_of(class_sums(margins_BC) | area_sums(areas_BC))
    resampled_S = np.concatenate([weights @ sums_GS for weights in _resamples(units, num_bootstrap, seed)])
    drawn |= calibration_numbers(resampled_S, margins_BC.true.sum(axis=1))
    freedom = dict(zip(METRICS, _freedom(labels_N, num_classes, units), strict=True))

    image_units = Units("images", np.arange(num_images))
    sums_of_units: dict[str, Floats] = {}
    sums_of_images: dict[str, Floats] = {}
    by_class: dict[str, list[Score]] = {name: [] for name in CLASS_METRICS}
    for classes in _parts_of_classes(num_classes, num_images):
        parts = []
        for one, sums in ((units, sums_of_units), (image_units, sums_of_images)):
            margins = margins_without(labels_N, predicted_N, one, classes)
            left = areas_left_out(labels_N, scores_NC, one.index, one.count, classes)
            _add(sums, class_sums(margins) | area_sums(left))
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


def mean_score(values_N: Floats, units: Units, *, num_bootstrap: int, seed: int) -> Score:
    """Mean of a value between 0 and 1 of each image, with its interval."""
    return sample_of_mean(values_N, units, num_bootstrap=num_bootstrap, seed=seed).score()


def sample_of_mean(values_N: Floats, units: Units, *, num_bootstrap: int, seed: int) -> Sample:
    """Mean of any value of each image, and how it varies with the units that were drawn."""
    total_G = np.bincount(units.index, values_N, minlength=units.count)
    count_G = np.bincount(units.index, minlength=units.count)
    draws = [(weights @ total_G) / (weights @ count_G) for weights in _resamples(units, num_bootstrap, seed)]
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
        [_class_means(weights @ total_GC, weights @ count_GC) for weights in _resamples(units, num_bootstrap, seed)]
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


def mean_sample(samples: Sequence[Sample]) -> Sample:
    """The mean of one metric over several predictions of the same images."""
    return Sample(
        float(np.mean([one.value for one in samples])),
        np.mean([one.draws for one in samples], axis=0),
        LeftOut(
            np.mean([one.left_out.units for one in samples], axis=0),
            np.mean([one.left_out.images for one in samples], axis=0),
            samples[0].left_out.freedom,
        ),
    )


def confusion_samples(
    numbers: Callable[[NDArray[Any]], Mapping[str, Floats]], labels_N: Ints, predicted_N: Ints, num_classes: int,
    units: Units, freedom: Mapping[str, float], *, num_bootstrap: int, seed: int,
) -> dict[str, Sample]:  # fmt: skip
    """Any numbers from confusion matrices, with their variation with the tested units.

    Args:
        numbers: confusion matrices (..., C, C) -> the numbers (...) by name.
        freedom: degrees of freedom of each.
    """
    confusion_GCC = confusions_of_units(labels_N, predicted_N, num_classes, units)
    confusion_CC = confusion_GCC.sum(axis=0)
    drawn = numbers(_resampled_confusions(labels_N, predicted_N, num_classes, units, num_bootstrap, seed))
    of_units = numbers(confusion_CC - confusion_GCC)
    of_images = numbers(_confusions_without_image(labels_N, predicted_N, num_classes))
    return {
        name: Sample(float(value), drawn[name], LeftOut(of_units[name] - value, of_images[name] - value, freedom[name]))
        for name, value in numbers(confusion_CC).items()
    }


def pair_sample(blocks: Sequence[PairBlock], units: Units, freedom: float, *, num_bootstrap: int, seed: int) -> Sample:
    """The share of correctly ordered pairs, over all blocks, with its variation with the tested units.

    NaN where there is no pair.
    """
    wins, pairs = (np.array([getattr(block, name).sum() for block in blocks]).sum() for name in ("wins", "pairs"))
    value = _share(wins, pairs)
    deviations = []
    for of_image, count in ((units.index, units.count), (np.arange(len(units.index)), len(units.index))):
        lost_wins, lost_pairs = np.zeros(count), np.zeros(count)
        for block in blocks:
            lost = block.lost_with(of_image, count)
            lost_wins, lost_pairs = lost_wins + lost[0], lost_pairs + lost[1]
        deviations.append(_share(wins - lost_wins, pairs - lost_pairs) - value)
    draws = []
    for weights_BG in _resamples(units, num_bootstrap, seed):
        weights_BN = weights_BG[:, units.index].astype(np.float64)
        drawn = np.array([block.weighted(weights_BN) for block in blocks]).sum(axis=0)
        draws.append(_share(*drawn))
    return Sample(float(value), np.concatenate(draws), LeftOut(deviations[0], deviations[1], freedom))


def _share(part: Floats, whole: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        share: Floats = np.where(np.asarray(whole) > 0, part / whole, np.nan)
    return share


def confusions_of_units(labels_N: Ints, predicted_N: Ints, num_classes: int, units: Units) -> Ints:
    """Confusion matrices (G, C, C) of the units."""
    cells = (units.index * num_classes + labels_N) * num_classes + predicted_N
    counts = np.bincount(cells, minlength=units.count * num_classes**2)
    return counts.reshape(units.count, num_classes, num_classes).astype(np.int64)


def _ends(name: str) -> dict[str, float]:
    """The range of a metric."""
    return {"lowest": LOWEST.get(name, 0.0), "highest": HIGHEST.get(name, 1.0)}


def _parts_of_classes(num_classes: int, num_images: int) -> Iterator[range]:
    """All classes in parts, so that an array of images and classes stays small."""
    step = max(1, MAX_COUNTS_AT_ONCE // max(num_images, 1))
    for first in range(0, num_classes, step):
        yield range(first, min(first + step, num_classes))


def counts_of_classes(labels_N: Ints, predicted_N: Ints, units: Units, classes: range) -> Margins:
    """Hits, images and predictions (G, K) of K classes in each unit."""

    def counted(number_N: Ints, is_counted_N: NDArray[np.bool_]) -> Ints:
        here_N = is_counted_N & (number_N >= classes.start) & (number_N < classes.stop)
        cells = units.index[here_N] * len(classes) + number_N[here_N] - classes.start
        return np.bincount(cells, minlength=units.count * len(classes)).reshape(units.count, -1).astype(np.int64)

    everywhere_N = np.ones(len(labels_N), bool)
    return Margins(counted(labels_N, labels_N == predicted_N), counted(labels_N, everywhere_N),
                   counted(predicted_N, everywhere_N))  # fmt: skip


def margins_without(labels_N: Ints, predicted_N: Ints, units: Units, classes: range) -> Margins:
    """Hits, images and predictions (G, K) of K classes, without each unit in turn."""
    counts = counts_of_classes(labels_N, predicted_N, units, classes)
    hits, true, predicted = (one.sum(axis=0) - one for one in (counts.hits, counts.true, counts.predicted))
    return Margins(hits, true, predicted)


def _add(sums: dict[str, Floats], others: Mapping[str, Floats]) -> None:
    for name, other in others.items():
        sums[name] = sums[name] + other if name in sums else other


def _summary_without(labels_N: Ints, predicted_N: Ints, units: Units, num_classes: int) -> dict[str, Floats]:
    """The metrics that need no scores (G,), without each unit in turn."""
    sums: dict[str, Floats] = {}
    for classes in _parts_of_classes(num_classes, len(labels_N)):
        _add(sums, class_sums(margins_without(labels_N, predicted_N, units, classes)))
    return summary_of(sums)


def _freedom(labels_N: Ints, num_classes: int, units: Units) -> tuple[float, ...]:
    """Degrees of freedom of each of METRICS, in its order."""
    of_all = degrees_of_freedom(np.bincount(units.index, minlength=units.count)[:, None])
    of_classes = degrees_of_freedom(_sparse_counts(labels_N, np.ones(len(labels_N), bool), num_classes, units))
    return of_all, of_classes, of_classes, min(of_all, of_classes), of_classes, of_all, of_all


def _sparse_counts(number_N: Ints, is_counted_N: NDArray[np.bool_], num_classes: int, units: Units) -> csr_array:
    """How often each class (G, C) stands among the counted images of each unit."""
    from scipy.sparse import csr_array  # here, since scipy takes a second to import: refusals come before it

    places = (units.index[is_counted_N], number_N[is_counted_N])
    return csr_array((np.ones(len(places[0])), places), (units.count, num_classes))


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


def _samples_of_draw(
    labels_N: Ints, predicted_N: Ints, units: Units, num_classes: int, num_bootstrap: int, seed: int
) -> dict[str, Sample]:
    """The metrics that need no scores."""
    drawn = summary_of(class_sums(_resampled_margins(labels_N, predicted_N, num_classes, units, num_bootstrap, seed)))
    of_units = _summary_without(labels_N, predicted_N, units, num_classes)
    of_images = _summary_without(labels_N, predicted_N, Units("images", np.arange(len(labels_N))), num_classes)
    value = summarise(confusion_matrix(labels_N, predicted_N, num_classes))
    return {
        name: Sample(
            float(value[name]), drawn[name],
            LeftOut(of_units[name] - value[name], of_images[name] - value[name], freedom),
        )
        for name, freedom in zip(value, _freedom(labels_N, num_classes, units), strict=False)
    }  # fmt: skip


def _confusions_without_image(labels_N: Ints, predicted_N: Ints, num_classes: int) -> Ints:
    """The confusion matrix (N, C, C) without each image in turn."""
    number_N = np.arange(len(labels_N))
    confusion_NCC = np.broadcast_to(
        confusion_matrix(labels_N, predicted_N, num_classes), (len(labels_N), num_classes, num_classes)
    ).copy()
    confusion_NCC[number_N, labels_N, predicted_N] -= 1
    return confusion_NCC


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


def _resampled_margins(
    labels_N: Ints, predicted_N: Ints, num_classes: int, units: Units, num_bootstrap: int, seed: int
) -> Margins:
    """Hits, images and predictions (B, C) of the classes in the resamples."""
    everywhere_N = np.ones(len(labels_N), bool)
    counts_CG = [
        _sparse_counts(number_N, is_counted_N, num_classes, units).T
        for number_N, is_counted_N in
        ((labels_N, labels_N == predicted_N), (labels_N, everywhere_N), (predicted_N, everywhere_N))
    ]  # fmt: skip
    chunks = [
        [(counts @ weights.T.astype(np.float64)).T for counts in counts_CG]
        for weights in _resamples(units, num_bootstrap, seed)
    ]
    hits_BC, true_BC, predicted_BC = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    return Margins(hits_BC, true_BC, predicted_BC)


def _resampled_confusions(
    labels_N: Ints, predicted_N: Ints, num_classes: int, units: Units, num_bootstrap: int, seed: int
) -> Floats:
    """Confusion matrices (B, C, C) of the resamples."""
    from scipy.sparse import csr_array  # here, since scipy takes a second to import: refusals come before it

    cells = labels_N * num_classes + predicted_N
    ones = np.ones(len(cells))
    counts_of_units = csr_array((ones, (cells, units.index)), shape=(num_classes**2, units.count))
    chunks = [(counts_of_units @ weights.T.astype(np.float64)).T for weights in _resamples(units, num_bootstrap, seed)]
    return np.concatenate(chunks).reshape(num_bootstrap, num_classes, num_classes)


def _widened(over_units: Score, values_L: Floats) -> Score:
    """The interval with that of the mean of L values added, by the squares of their arms; scores end at 1."""
    from scipy.special import stdtrit

    arm = float(stdtrit(len(values_L) - 1, UPPER / 100) * values_L.std(ddof=1) / math.sqrt(len(values_L)))
    low = over_units.value - math.hypot(over_units.value - over_units.low, arm)
    high = over_units.value + math.hypot(over_units.high - over_units.value, arm)
    return Score(over_units.value, low, min(high, 1.0))


def _percentiles(value: float, draws_B: Floats) -> Score:
    known_B = draws_B[~np.isnan(draws_B)]
    if len(known_B) == 0:
        return Score(value, math.nan, math.nan)
    low, high = np.percentile(known_B, [LOWER, UPPER])
    return Score(value, float(low), float(high))
