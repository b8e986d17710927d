"""Areas and concordance within folds, and what leaving out and drawing again makes of them, against other code."""

import numpy as np
import pytest
from lifelines.utils import concordance_index
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from dino_path.evaluation.cohorts.measuring import quadratic_kappa
from dino_path.evaluation.measures.confusion import confusion_matrix
from dino_path.evaluation.measures.intervals import degrees_of_freedom
from dino_path.evaluation.measures.pairs import class_pairs, pair_sample, survival_pairs
from dino_path.evaluation.measures.sample import Sample, Units

RNG = np.random.default_rng(0)
PATIENTS = RNG.integers(0, 20, 60)
UNITS = Units("patients", np.unique(PATIENTS, return_inverse=True)[1].astype(np.int64))
ALL = np.arange(60)
IS_POSITIVE = RNG.random(60) < 0.4
SCORE = np.round(RNG.normal(size=60) + IS_POSITIVE, 1)  # with ties
TIMES = np.ceil(RNG.exponential(5, 60))  # with ties
EVENTS = RNG.random(60) < 0.6


def sample_of(blocks: list) -> Sample:
    return pair_sample(blocks, UNITS, 10.0, num_bootstrap=100, seed=0)


def test_one_block_is_the_area_of_scikit_learn_and_leaving_out_is_measuring_again() -> None:
    sample = sample_of([class_pairs(ALL, IS_POSITIVE, SCORE)])
    assert sample.value == pytest.approx(roc_auc_score(IS_POSITIVE, SCORE), abs=1e-12)
    for deviations, unit in ((sample.left_out.units, UNITS.index), (sample.left_out.images, ALL)):
        for number, deviation in enumerate(deviations):
            kept = unit != number
            again = roc_auc_score(IS_POSITIVE[kept], SCORE[kept])
            assert sample.value + deviation == pytest.approx(again, abs=1e-12)


def test_one_block_of_survival_is_the_concordance_of_lifelines() -> None:
    sample = sample_of([survival_pairs(ALL, TIMES, EVENTS, SCORE)])
    assert sample.value == pytest.approx(concordance_index(TIMES, -SCORE, EVENTS), abs=1e-12)
    for number in range(UNITS.count):
        kept = UNITS.index != number
        again = concordance_index(TIMES[kept], -SCORE[kept], EVENTS[kept])
        assert sample.value + sample.left_out.units[number] == pytest.approx(again, abs=1e-12)


def test_a_resample_is_the_area_of_the_cases_as_often_as_they_were_drawn() -> None:
    sample = sample_of([class_pairs(ALL, IS_POSITIVE, SCORE)])
    drawn = np.random.default_rng(0).integers(UNITS.count, size=(100, UNITS.count))
    for draw in (0, 57):
        weights = np.bincount(drawn[draw], minlength=UNITS.count)[UNITS.index]
        again = roc_auc_score(np.repeat(IS_POSITIVE, weights), np.repeat(SCORE, weights))
        assert sample.draws[draw] == pytest.approx(again, abs=1e-12)


def test_cases_of_two_folds_are_not_compared() -> None:
    folds = [ALL[:30], ALL[30:]]
    shifted = SCORE + 100 * (ALL >= 30)
    blocks = [class_pairs(fold, IS_POSITIVE[fold], shifted[fold]) for fold in folds]
    pairs = [int(block.pairs.sum()) for block in blocks]
    areas = [roc_auc_score(IS_POSITIVE[fold], SCORE[fold]) for fold in folds]
    assert sample_of(blocks).value == pytest.approx(np.average(areas, weights=pairs), abs=1e-12)


def test_without_a_pair_there_is_no_number() -> None:
    sample = sample_of([class_pairs(ALL, np.ones(60, bool), SCORE)])
    assert np.isnan(sample.value)
    assert np.isnan(sample.score().low)


def test_quadratic_kappa_is_that_of_scikit_learn_however_many_matrices() -> None:
    truth, guess = RNG.integers(0, 4, 80), RNG.integers(0, 4, 80)
    near = np.clip(truth + RNG.integers(-1, 2, 80), 0, 3)
    kappas = quadratic_kappa(np.stack([confusion_matrix(truth, one, 4) for one in (guess, near)]))
    expected = [cohen_kappa_score(truth, one, weights="quadratic") for one in (guess, near)]
    np.testing.assert_allclose(kappas, expected, atol=1e-12)


def test_intervals_hold_the_truth_of_few_patients_whose_folds_have_other_scales() -> None:
    """Binormal scores of 30 patients of two slides; each fold has its own shift. The truth is Phi(1 / sqrt 2)."""
    rng, truth, held = np.random.default_rng(3), 0.7602499, 0
    patient = np.repeat(np.arange(30), 2)
    units, positive, fold_of = Units("patients", patient.astype(np.int64)), patient % 3 == 0, patient // 6
    counts = np.stack([np.bincount(patient, positive), np.bincount(patient, ~positive)], axis=1)
    freedom = degrees_of_freedom(counts)
    for _ in range(300):
        score = positive + np.sqrt(0.5) * (rng.normal(size=30)[patient] + rng.normal(size=60)) + 9 * fold_of
        blocks = [class_pairs(cases, positive[cases], score[cases])
                  for cases in (np.flatnonzero(fold_of == fold) for fold in range(5))]  # fmt: skip
        interval = pair_sample(blocks, units, freedom, num_bootstrap=100, seed=0).score()
        held += interval.low <= truth <= interval.high
    assert 0.92 <= held / 300 <= 0.99
