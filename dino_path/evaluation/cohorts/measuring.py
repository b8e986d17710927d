"""How good the answers of a repeated cross-validation are, with intervals over patients.

Shape suffixes: R repeats, N cases, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dino_path.config import CohortConfig
from dino_path.evaluation.cohorts.cohort import Cohort
from dino_path.evaluation.cohorts.folds import Folds
from dino_path.evaluation.measures.confusion import Floats, Ints, Margins, class_scores, mean_where_known, summarise
from dino_path.evaluation.measures.counts import confusion_samples
from dino_path.evaluation.measures.intervals import LEAST_FREEDOM, Score, degrees_of_freedom
from dino_path.evaluation.measures.pairs import class_pairs, pair_sample, survival_pairs
from dino_path.evaluation.measures.sample import BOOTSTRAP_FREEDOM, Sample, mean_sample

TITLES = {
    "auroc": "AUROC",
    "balanced_accuracy": "balanced accuracy",
    "kappa": "Cohen's kappa",
    "quadratic_kappa": "quadratic kappa",
    "concordance": "concordance index",
}
LOWEST = {"kappa": -1.0, "quadratic_kappa": -1.0}
GUESSING = {"auroc": 0.5, "kappa": 0.0, "quadratic_kappa": 0.0, "concordance": 0.5}  # of balanced accuracy: 1 / C


@dataclass(frozen=True)
class Measured:
    """The numbers of one extractor and aggregator.

    Attributes:
        samples: of each metric, the mean over repeats.
        recall: of each class, with its interval; empty for survival.
        confusion: (C, C) counts over all repeats, true classes as rows; None for survival.
        by_repeat: metric -> its value in each repeat: how much depends on how the folds fell.
        by_centre: centre -> metric -> value; empty where no centres are known.
    """

    samples: Mapping[str, Sample]
    recall: Mapping[str, Score]
    confusion: Ints | None
    by_repeat: Mapping[str, tuple[float, ...]]
    by_centre: Mapping[str, Mapping[str, float]]

    def score(self, metric: str) -> Score:
        return self.samples[metric].score(lowest=LOWEST.get(metric, 0.0))

    def less(self, other: Measured) -> dict[str, Score]:
        """Each metric less the other's, paired: the same patients, folds and resamples."""
        return {
            name: (sample - other.samples[name]).difference(lowest=LOWEST.get(name, 0.0))
            for name, sample in self.samples.items()
        }


def measure_classes(scores_RNC: Floats, cohort: Cohort, folds: Folds, config: CohortConfig) -> Measured:
    """AUROC (one versus rest, mean over classes), balanced accuracy and kappa of class probabilities.

    Areas compare cases of one test part (`measures.pairs`), over all repeats. The others are the mean over repeats of
    the number over all folds. Quadratic kappa (Cohen 1968) stands where the classes have an order, Cohen's kappa else.
    """
    units, labels_N = cohort.units, cohort.labels
    num_classes = len(cohort.classes)
    boot: dict[str, int] = {"num_bootstrap": config.num_bootstrap, "seed": config.seed}
    counts_GC = np.zeros((units.count, num_classes))
    np.add.at(counts_GC, (units.index, labels_N), 1)
    of_classes, of_all = degrees_of_freedom(counts_GC), degrees_of_freedom(counts_GC.sum(axis=1, keepdims=True))
    freedom = {"balanced_accuracy": of_classes, "kappa": min(of_all, of_classes)}
    freedom["quadratic_kappa"] = freedom["kappa"]
    freedom |= {f"recall of {c}": degrees_of_freedom(counts_GC[:, [c]]) for c in range(num_classes)}
    predicted_RN = scores_RNC.argmax(axis=2).astype(np.int64)
    numbers = _ordered_numbers if cohort.is_ordered else _plain_numbers
    of_repeats = [
        confusion_samples(numbers, labels_N, predicted_N, num_classes, units, freedom, **boot)
        for predicted_N in predicted_RN
    ]
    samples = {name: mean_sample([one[name] for one in of_repeats]) for name in of_repeats[0]}
    areas = [_area(scores_RNC, cohort, folds, label, of_classes, boot) for label in range(num_classes)]
    # Of two classes both areas are the same, and so is their mean.
    auroc = mean_sample([area for area in areas if not np.isnan(area.value)] or areas)
    kept = {"auroc": auroc, **{name: one for name, one in samples.items() if not name.startswith("recall")}}
    confusion_CC = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(confusion_CC, (np.broadcast_to(labels_N, predicted_RN.shape), predicted_RN), 1)
    return Measured(
        samples=kept,
        recall={label: samples[f"recall of {c}"].score() for c, label in enumerate(cohort.classes)},
        confusion=confusion_CC,
        by_repeat={
            "auroc": _auroc_of_repeats(scores_RNC, cohort, folds),
            **{name: tuple(one[name].value for one in of_repeats) for name in kept if name != "auroc"},
        },
        by_centre=_by_centre(predicted_RN, cohort),
    )


def measure_risks(risks_RN: Floats, cohort: Cohort, folds: Folds, config: CohortConfig) -> Measured:
    """Harrell's concordance index of risks, within test parts and over all repeats.

    Degrees of freedom count patients with an event: they decide.
    """
    assert cohort.times is not None
    units, is_event_N = cohort.units, cohort.labels == 1
    counts_G1 = np.bincount(units.index, is_event_N, units.count)[:, None]
    blocks = [
        survival_pairs(fold.test, cohort.times[fold.test], is_event_N[fold.test], risks_RN[fold.repeat - 1, fold.test])
        for fold in folds
    ]
    boot: dict[str, int] = {"num_bootstrap": config.num_bootstrap, "seed": config.seed}
    sample = pair_sample(blocks, units, degrees_of_freedom(counts_G1), **boot)
    by_repeat = []
    for repeat in range(folds.num_repeats):
        of_repeat = blocks[repeat * folds.num_folds : (repeat + 1) * folds.num_folds]
        wins, pairs = sum(float(b.wins.sum()) for b in of_repeat), sum(int(b.pairs.sum()) for b in of_repeat)
        by_repeat.append(wins / pairs if pairs else float("nan"))
    return Measured({"concordance": sample}, {}, None, {"concordance": tuple(by_repeat)}, {})


def interval_words(measured: Measured, cohort: Cohort) -> str:
    """Description of the brackets."""
    units = cohort.units
    freedom = next(iter(measured.samples.values())).left_out.freedom
    if freedom < LEAST_FREEDOM:
        return f"no intervals: too few {units.name} ({units.count})"
    kind = "bootstrap" if freedom >= BOOTSTRAP_FREEDOM else f"Student's t, {freedom:.1f} degrees of freedom"
    return f"95 % interval over {units.count} {units.name} ({kind})"


def quadratic_kappa(confusion_CC: NDArray[Any]) -> Floats:
    """Cohen's kappa (...) of confusion matrices (..., C, C) with disagreements weighed by their squared distance."""
    counts = confusion_CC.astype(np.float64)
    number_C = np.arange(counts.shape[-1])
    weights_CC = (number_C[:, None] - number_C) ** 2
    expected = counts.sum(axis=-1)[..., :, None] * counts.sum(axis=-2)[..., None, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        disagreement = (weights_CC * counts).sum(axis=(-2, -1)) * counts.sum(axis=(-2, -1))
        kappa: Floats = 1 - disagreement / (weights_CC * expected).sum(axis=(-2, -1))
    return kappa


def _plain_numbers(confusion_CC: NDArray[Any]) -> dict[str, Floats]:
    summary = summarise(confusion_CC)
    recall = class_scores(Margins.of(confusion_CC))["recall"]
    recalls = {f"recall of {number}": recall[..., number] for number in range(recall.shape[-1])}
    return {name: summary[name] for name in ("balanced_accuracy", "kappa")} | recalls


def _ordered_numbers(confusion_CC: NDArray[Any]) -> dict[str, Floats]:
    numbers = _plain_numbers(confusion_CC)
    del numbers["kappa"]
    return {
        "balanced_accuracy": numbers.pop("balanced_accuracy"),
        "quadratic_kappa": quadratic_kappa(confusion_CC),
    } | numbers


def _area(scores_RNC: Floats, cohort: Cohort, folds: Folds, label: int, freedom: float, boot: dict[str, int]) -> Sample:
    blocks = [
        class_pairs(fold.test, cohort.labels[fold.test] == label, scores_RNC[fold.repeat - 1, fold.test, label])
        for fold in folds
    ]
    return pair_sample(blocks, cohort.units, freedom, **boot)


def _auroc_of_repeats(scores_RNC: Floats, cohort: Cohort, folds: Folds) -> tuple[float, ...]:
    values = []
    for repeat in range(folds.num_repeats):
        areas = []
        for label in range(len(cohort.classes)):
            blocks = [
                class_pairs(fold.test, cohort.labels[fold.test] == label, scores_RNC[repeat, fold.test, label])
                for fold in folds if fold.repeat == repeat + 1
            ]  # fmt: skip
            pairs = sum(int(block.pairs.sum()) for block in blocks)
            areas.append(sum(float(block.wins.sum()) for block in blocks) / pairs if pairs else np.nan)
        values.append(float(mean_where_known(np.array(areas))))
    return tuple(values)


def _by_centre(predicted_RN: Ints, cohort: Cohort) -> dict[str, dict[str, float]]:
    """Balanced accuracy and number of cases of each centre, over all repeats."""
    if cohort.centres is None:
        return {}
    found = {}
    for centre in np.unique(cohort.centres):
        is_here_N = cohort.centres == centre
        confusion_CC = np.zeros((len(cohort.classes),) * 2, np.int64)
        labels = np.broadcast_to(cohort.labels[is_here_N], predicted_RN[:, is_here_N].shape)
        np.add.at(confusion_CC, (labels, predicted_RN[:, is_here_N]), 1)
        value = float(summarise(confusion_CC)["balanced_accuracy"])
        found[str(centre)] = {"balanced_accuracy": value, "num_cases": float(is_here_N.sum())}
    return found
