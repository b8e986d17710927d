"""How often 95 % intervals over few test patients contain the true value, for each method.

    uv run python benchmarks/evaluation/coverage.py [--experiments 300] [--patients 3 4 6 10 20 50]

Each experiment draws patients, their images and the answers of two models; the truth is that of infinitely many.
Patients differ: the share of right answers of a patient follows a beta distribution, both models' are correlated within
a patient (a Gaussian copula), and numbers of images are equal or very unequal (log-normal, sigma 1). Printed is the
share of experiments whose interval holds the truth, in per cent, among those that have an interval; in round brackets
the median width; in square ones the share of experiments that have one, where it is not all. 93 and more is held.
"""

from __future__ import annotations

import argparse
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit
from scipy.stats import beta

from dino_path.evaluation.measures import metrics
from dino_path.evaluation.measures.confusion import summarise
from dino_path.evaluation.measures.intervals import score_interval
from dino_path.evaluation.measures.sample import Sample, Units

NUM_RESAMPLES = 300
MEAN_IMAGES = 20
METRICS = ("accuracy", "balanced_accuracy", "kappa", "auroc")


@dataclass(frozen=True)
class Scenario:
    """Properties of the simulated patients and models.

    Attributes:
        right: share of right answers of the first model.
        spread: intraclass correlation of right answers within a patient, of beta distributed shares.
        is_unequal: numbers of images are log-normal with sigma 1; else all alike.
        classes: `mixed`, every patient has images of both; `one`, each has one; `rare`, one in five is of the second.
        gain: the second model's share of right answers less the first's.
    """

    name: str
    right: float
    spread: float
    is_unequal: bool
    classes: str
    gain: float = 0.05


SCENARIOS = (
    Scenario("patients differ little, mixed classes", 0.80, 0.05, False, "mixed"),
    Scenario("patients differ, unequal sizes, mixed classes", 0.80, 0.2, True, "mixed"),
    Scenario("patients differ, one class each", 0.80, 0.2, False, "one"),
    Scenario("patients differ, unequal sizes, one class each", 0.80, 0.2, True, "one"),
    Scenario("good models, patients differ much, unequal sizes, mixed", 0.93, 0.3, True, "mixed", 0.02),
    Scenario("good models, patients differ much, one class each, one in five", 0.93, 0.3, True, "rare", 0.02),
)


@dataclass(frozen=True)
class Experiment:
    """What was tested: patient, true and predicted classes (2, N) of both models, and class scores (2, N, 2)."""

    units: Units
    labels: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray


def draw(scenario: Scenario, num_patients: int, rng: np.random.Generator) -> Experiment:
    """Patients, their images, and the answers of the two models."""
    sizes = rng.lognormal(0, 1.0 * scenario.is_unequal, num_patients)
    sizes = np.maximum(2, np.round(MEAN_IMAGES * sizes / np.exp(0.5 * scenario.is_unequal))).astype(int)
    patient = np.repeat(np.arange(num_patients), sizes)
    match scenario.classes:
        case "mixed":
            labels = (rng.random(len(patient)) < 0.4).astype(np.int64)
        case "one":
            labels = (patient % 2).astype(np.int64)
        case _:
            labels = (patient < max(1, round(num_patients / 5))).astype(np.int64)
    # Share of right answers of each patient, class and model: what they have in common is the patient, then the class.
    common, of_class, own = (rng.normal(size=(num_patients, *shape)) for shape in ((1, 1), (2, 1), (2, 2)))
    place = ndtr(np.sqrt(0.5) * common + np.sqrt(0.25) * of_class + np.sqrt(0.25) * own)
    strength = 1 / scenario.spread - 1
    mean = np.array([scenario.right, scenario.right + scenario.gain])
    share = beta.ppf(place, mean * strength, (1 - mean) * strength)
    is_right = rng.random((2, len(patient))) < share[patient, labels].T
    predicted = np.where(is_right, labels, 1 - labels)
    # How sure a model is has nothing to do with being right: the area under the ROC curve is the share right.
    sure = rng.uniform(0.5, 1, (2, len(patient)))
    positive = np.where(predicted == 1, sure, 1 - sure)
    units = Units("patients", patient.astype(np.int64))
    return Experiment(units, labels, predicted, np.stack([1 - positive, positive], axis=2))


def truth(scenario: Scenario, experiment: Experiment, model: int) -> dict[str, float]:
    """The metrics for infinitely many patients."""
    right = scenario.right + scenario.gain * model
    share = {"mixed": 0.4, "one": 0.5}.get(scenario.classes)
    if share is None or scenario.classes == "one":
        share = float(np.bincount(experiment.units.index, experiment.labels > 0).astype(bool).mean())
    confusion = np.array([[(1 - share) * right, (1 - share) * (1 - right)], [share * (1 - right), share * right]])
    return {**{name: float(v) for name, v in summarise(confusion).items()}, "auroc": right}


Ends = tuple[float, float]
NONE: Ends = (np.nan, np.nan)


def percentile(sample: Sample, *, lowest: float | None) -> Ends:
    """Percentiles of the bootstrap over patients."""
    draws = sample.draws[~np.isnan(sample.draws)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def bca(sample: Sample, *, lowest: float | None) -> Ends:
    """Bias-corrected and accelerated (Efron 1987)."""
    draws, left_out = sample.draws[~np.isnan(sample.draws)], -sample.left_out.units
    share = ((draws < sample.value).sum() + 0.5 * (draws == sample.value).sum()) / len(draws)
    bias = ndtri(np.clip(share, 1 / len(draws), 1 - 1 / len(draws)))
    left_out = left_out - left_out.mean()
    cube, square = (left_out**3).sum(), (left_out**2).sum() ** 1.5
    acceleration = cube / (6 * square) if square else 0.0
    places = [ndtr(bias + (bias + z) / (1 - acceleration * (bias + z))) for z in (-1.959964, 1.959964)]
    low, high = np.percentile(draws, 100 * np.clip(np.nan_to_num(places), 0, 1))
    return float(low), float(high)


def normal(sample: Sample, *, lowest: float | None) -> Ends:
    """The jackknife's standard error times 1.96."""
    arm = 1.959964 * sample.left_out.standard_error()
    return sample.value - arm, sample.value + arm


def pseudo_values(sample: Sample) -> np.ndarray:
    """The pseudo-value of each patient (Tukey 1958)."""
    units = sample.left_out.units
    return sample.value - (len(units) - 1) * units


def bootstrap_t(sample: Sample, *, lowest: float | None) -> Ends:
    """Studentised bootstrap of the pseudo-values (Efron 1981)."""
    values = pseudo_values(sample)
    drawn = values[np.random.default_rng(0).integers(len(values), size=(NUM_RESAMPLES, len(values)))]
    spread = drawn.std(axis=1, ddof=1)
    t = (drawn.mean(axis=1) - values.mean())[spread > 0] / spread[spread > 0]
    if len(t) < NUM_RESAMPLES / 2 or np.isnan(values).any():
        return NONE
    high, low = np.percentile(t, [2.5, 97.5]) * values.std(ddof=1)
    return values.mean() - low, values.mean() - high


def sign_flip(sample: Sample, *, lowest: float | None) -> Ends:
    """Values not rejected by a sign-flip test of the pseudo-values: percentiles of subset means (Hartigan 1969)."""
    values = pseudo_values(sample)
    if len(values) < 6:
        return NONE
    if len(values) <= 10:
        subsets = np.arange(1, 2 ** len(values))[:, None] >> np.arange(len(values)) & 1
    else:
        subsets = np.random.default_rng(0).integers(0, 2, (1000, len(values)))
    means = np.sort((subsets @ values) / subsets.sum(axis=1))
    rank = int(0.025 * (len(means) + 1))
    return means[rank - 1], means[-rank]


def t_all(sample: Sample, *, lowest: float | None) -> Ends:
    """The jackknife with Student's t of G - 1 degrees of freedom."""
    units = sample.left_out.units
    arm = float(stdtrit(len(units) - 1, 0.975) * np.sqrt((len(units) - 1) / len(units) * (units**2).sum()))
    return sample.value - arm, sample.value + arm


def t_effective(sample: Sample, *, lowest: float | None) -> Ends:
    """The jackknife with Student's t with the effective degrees of freedom of the units."""
    if not sample.left_out.freedom:
        return NONE
    arm = float(stdtrit(sample.left_out.freedom, 0.975)) * sample.left_out.standard_error()
    return sample.value - arm, sample.value + arm


def t_logit(sample: Sample, *, lowest: float | None) -> Ends:
    """The same on the logit scale; only for scores, because differences have no logit."""
    if lowest is None:
        return NONE
    score = score_interval(sample.value, sample.left_out, lowest=lowest)
    return score.low, score.high


WAYS: dict[str, Callable[..., Ends]] = {
    "percentile bootstrap": percentile,
    "BCa bootstrap": bca,
    "bootstrap-t": bootstrap_t,
    "sign flips": sign_flip,
    "jackknife, normal": normal,
    "jackknife, t of G - 1": t_all,
    "jackknife, t of effective df": t_effective,
    "jackknife, t of effective df, logit": t_logit,
}


def run(scenario: Scenario, num_patients: int, num_experiments: int) -> dict[tuple[str, str], np.ndarray]:
    """Lower and upper limit minus the true value (2, E), by method and quantity."""
    rng = np.random.default_rng([SCENARIOS.index(scenario), num_patients])
    ends: dict[tuple[str, str], list[Ends]] = defaultdict(list)
    for number in range(num_experiments):
        experiment = draw(scenario, num_patients, rng)
        measured = [
            metrics.measure(
                experiment.labels, experiment.predicted[model], experiment.scores[model], experiment.units,
                num_bootstrap=NUM_RESAMPLES, seed=number,
            )
            for model in (0, 1)
        ]  # fmt: skip
        true = [truth(scenario, experiment, model) for model in (0, 1)]
        for name in METRICS:
            one, other = (m.samples[name] for m in measured)
            difference = other - one
            for what, sample, value, lowest in (
                (name, one, true[0][name], metrics.LOWEST.get(name, 0.0)),
                (f"difference of {name}", difference, true[1][name] - true[0][name], None),
            ):
                for way, make in WAYS.items():
                    low, high = make(sample, lowest=lowest) if np.isfinite(sample.value) else NONE
                    ends[what, way].append((low - value, high - value))
                kept = (
                    sample.difference(lowest=metrics.LOWEST.get(name, 0.0))
                    if lowest is None
                    else sample.score(lowest=lowest)
                )
                ends[what, "dino_path"].append((kept.low - value, kept.high - value))
    return {key: np.array(pairs).T for key, pairs in ends.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=300)
    parser.add_argument("--patients", type=int, nargs="+", default=[3, 4, 6, 10, 20, 50])
    parser.add_argument("--scenario", type=int, nargs="+", default=list(range(len(SCENARIOS))))
    options = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)
    for place in options.scenario:
        scenario = SCENARIOS[place]
        print(f"\n{scenario.name}")
        results = {count: run(scenario, count, options.experiments) for count in options.patients}
        for key in results[options.patients[0]]:
            cells = [cell(results[count][key]) for count in options.patients]
            print(f"| {key[0]} | {key[1]} | " + " | ".join(cells) + " |", flush=True)


def cell(ends: np.ndarray) -> str:
    low, high = ends
    known = ~np.isnan(low)
    if known.mean() < 0.05:
        return "none"
    inside = ((low <= 1e-9) & (high >= -1e-9))[known].mean()
    missing = f" [{known.mean():.0%}]" if known.mean() < 0.95 else ""
    return f"{100 * inside:.1f} ({np.median((high - low)[known]):.2f}){missing}"


if __name__ == "__main__":
    main()
