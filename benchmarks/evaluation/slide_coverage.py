"""How often the intervals of `evaluate slides` contain the true value, with few patients.

    uv run python benchmarks/evaluation/slide_coverage.py [--experiments 200] [--patients 16 30 60] [--repeats 2]

Each experiment draws a cohort of two classes (three in ten patients are of the second; one or two slides each, alike),
and judges it as `evaluate slides` does: five folds of patients, drawn --repeats times, logistic regression on the mean
features (20 Gaussian features, of which three tell), or Cox on all of them with exponential times, a third of them
censored. The truth is the mean, over all experiments, of the AUROC that the trained models have on infinitely many
cases, in closed form (Phi(w . d / sqrt(2 w' S w)) of weights w); of the concordance index, that on 2000 new patients.
Printed is the share of experiments whose interval holds it, in per cent; the median width; and the mean of the values
beside the truth.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dino_path.config import CohortConfig
from dino_path.evaluation.cohorts.cohort import Cohort
from dino_path.evaluation.cohorts.folds import draw_cohort_folds
from dino_path.evaluation.cohorts.mean_pooling import cox_risks, mean_logistic
from dino_path.evaluation.cohorts.measuring import measure_classes, measure_risks
from dino_path.evaluation.measures.pairs import survival_pairs

NUM_FEATURES, NUM_TELLING, GAIN = 20, 3, 0.8
SECOND_CLASS = 0.3
ALIKE = 0.5  # share of the variance that slides of one patient have in common
NEW_PATIENTS = 2000


@dataclass(frozen=True)
class Experiment:
    """Value and interval of one cohort, and the average quality of its models."""

    value: float
    low: float
    high: float
    truth: float


def cohort_of(patient_N: np.ndarray, labels_N: np.ndarray, times_N: np.ndarray | None) -> Cohort:
    """A cohort without files."""
    names = tuple(f"case {number}" for number in range(len(labels_N)))
    return Cohort(
        name="simulated", task="label" if times_N is None else "survival", unit="slide", cases=names,
        slides=tuple((name,) for name in names), patients=patient_N.astype(str), has_patients=True, centres=None,
        classes=("first", "second"), labels=labels_N, times=times_N, is_ordered=False, left_out={}, notes=(),
    )  # fmt: skip


def features_of(told_N: np.ndarray, patient_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N, D): noise of patients and slides, and what tells."""
    shared = rng.normal(size=(patient_N.max() + 1, NUM_FEATURES))[patient_N]
    own = rng.normal(size=(len(patient_N), NUM_FEATURES))
    features = np.sqrt(ALIKE) * shared + np.sqrt(1 - ALIKE) * own
    features[:, :NUM_TELLING] += GAIN * told_N[:, None]
    return features


def classes(num_patients: int, config: CohortConfig, rng: np.random.Generator) -> Experiment:
    """One cohort with labels."""
    of_patient = (np.arange(num_patients) < max(2, round(SECOND_CLASS * num_patients))).astype(np.int64)
    patient_N = np.repeat(np.arange(num_patients), rng.integers(1, 3, num_patients))
    labels_N = of_patient[patient_N]
    features_ND = features_of(labels_N, patient_N, rng)
    cohort = cohort_of(patient_N, labels_N, None)
    folds = draw_cohort_folds(cohort, config)
    scores = np.zeros((folds.num_repeats, len(labels_N), 2))
    truths = []
    for fold in folds:
        scores[fold.repeat - 1, fold.test] = mean_logistic(features_ND, labels_N, fold)
        scaler = StandardScaler().fit(features_ND[fold.train])
        model = LogisticRegression(C=10 / NUM_FEATURES, class_weight="balanced", max_iter=1000)
        weights = model.fit(scaler.transform(features_ND[fold.train]), labels_N[fold.train]).coef_[0] / scaler.scale_
        truths.append(ndtr(GAIN * weights[:NUM_TELLING].sum() / np.sqrt(2 * (weights**2).sum())))
    score = measure_classes(scores, cohort, folds, config).score("auroc")
    return Experiment(score.value, score.low, score.high, float(np.mean(truths)))


def survival(num_patients: int, config: CohortConfig, rng: np.random.Generator) -> Experiment:
    """One cohort with times."""

    def draw(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        features = rng.normal(size=(number, NUM_FEATURES))
        times = rng.exponential(np.exp(-GAIN * features[:, :NUM_TELLING].sum(axis=1)))
        end = rng.exponential(2 * np.median(times), number)
        return features, np.minimum(times, end), (times <= end).astype(np.int64)

    features_ND, times_N, events_N = draw(num_patients)
    cohort = cohort_of(np.arange(num_patients), events_N, times_N)
    folds = draw_cohort_folds(cohort, config)
    risks = np.zeros((folds.num_repeats, num_patients))
    new_ND, new_times, new_events = draw(NEW_PATIENTS)
    truths = []
    for fold in folds:
        both = type(fold)(fold.repeat, fold.fold, fold.train, np.arange(num_patients, num_patients + NEW_PATIENTS))
        known = np.concatenate([features_ND, new_ND]), np.concatenate([times_N, new_times])
        new_risks = cox_risks(*known, np.concatenate([events_N, new_events]), both, config)
        block = survival_pairs(np.arange(NEW_PATIENTS), new_times, new_events == 1, new_risks)
        truths.append(block.wins.sum() / block.pairs.sum())
        risks[fold.repeat - 1, fold.test] = cox_risks(features_ND, times_N, events_N, fold, config)
    score = measure_risks(risks, cohort, folds, config).score("concordance")
    return Experiment(score.value, score.low, score.high, float(np.mean(truths)))


def main() -> None:
    """Print one line for each kind and number of patients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=200)
    parser.add_argument("--patients", type=int, nargs="+", default=[16, 30, 60])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", choices=["classes", "survival"], default=["classes", "survival"])
    given = parser.parse_args()
    for kind in given.kinds:
        for number in given.patients:
            config = CohortConfig(repeats=given.repeats, num_bootstrap=100)
            judge = classes if kind == "classes" else survival
            found = [
                judge(number, config.model_copy(update={"seed": seed}), np.random.default_rng([number, seed]))
                for seed in range(given.experiments)
            ]
            truth = np.mean([one.truth for one in found])
            known = [one for one in found if not np.isnan(one.low)]
            held = np.mean([one.low <= truth <= one.high for one in known]) if known else np.nan
            width = np.median([one.high - one.low for one in known]) if known else np.nan
            print(
                f"{kind:9} {number:4} patients: held {100 * held:5.1f} %  width {width:.2f}  "
                f"value {np.mean([one.value for one in found]):.3f} truth {truth:.3f}  ({len(known)} intervals)",
                flush=True,
            )


if __name__ == "__main__":
    main()
