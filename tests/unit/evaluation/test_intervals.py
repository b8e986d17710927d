import math

import numpy as np
import pytest
from scipy import stats

from dino_path.evaluation.measures.confusion import areas, areas_left_out
from dino_path.evaluation.measures.intervals import (
    LeftOut,
    Score,
    degrees_of_freedom,
    difference_interval,
    score_interval,
)
from dino_path.evaluation.measures.metrics import measure, paired_difference
from dino_path.evaluation.measures.sample import Units


def left_out(values, freedom=None):
    """Of a plain mean: each value is one unit and one image."""
    values = np.array(values, float)
    deviations = (values.sum() - values) / (len(values) - 1) - values.mean()
    return LeftOut(deviations, deviations, len(values) - 1.0 if freedom is None else freedom)


def by_patient(right, *, classes=2):
    """Metrics of patients with ten images each, of which these numbers are right; every patient has all classes."""
    patient = np.repeat(np.arange(len(right)), 10)
    labels = np.tile(np.arange(10) % classes, len(right))
    is_right = np.concatenate([np.arange(10) < number for number in right])
    predicted = np.where(is_right, labels, (labels + 1) % classes)
    units = Units("patients", patient)
    return measure(labels, predicted, np.eye(classes)[predicted], units, num_bootstrap=100, seed=0)


def brute_force_freedom(counts):
    """Satterthwaite's from the residuals' matrix itself."""
    share = counts / counts.sum(axis=0)
    num_units, num_classes = share.shape
    residuals = np.zeros((num_units, num_units * num_classes))
    for g in range(num_units):
        for c in range(num_classes):
            for h in range(num_units):
                residuals[g, h * num_classes + c] = share[g, c] * ((g == h) - share[h, c])
    covariance = residuals @ residuals.T
    return np.trace(covariance) ** 2 / (covariance**2).sum()


def test_the_difference_of_equal_units_is_the_t_interval_of_the_textbook():
    values = [0.1, 0.3, 0.2, 0.5, 0.0, 0.1, 0.4]
    got = difference_interval(np.mean(values), left_out(values))
    low, high = stats.t.interval(0.95, 6, loc=np.mean(values), scale=stats.sem(values))
    assert (got.low, got.high) == pytest.approx((low, high))


def test_degrees_of_freedom_are_those_of_the_residuals():
    counts = np.random.default_rng(0).integers(0, 9, (7, 3))
    assert degrees_of_freedom(counts) == pytest.approx(brute_force_freedom(counts))


def test_degrees_of_freedom_count_the_units_that_decide():
    assert degrees_of_freedom(np.full((6, 2), 10)) == pytest.approx(5)  # every patient has both classes
    assert degrees_of_freedom(np.array([[9, 0], [9, 0], [0, 9], [0, 9]])) == pytest.approx(2)  # two a class
    assert degrees_of_freedom(np.array([[1000], [5], [5], [5]])) < 1.4  # one patient decides
    assert degrees_of_freedom(np.array([[9, 3], [9, 0], [9, 0]])) == 0  # a class in one patient
    assert degrees_of_freedom(np.array([[9]])) == 0


def test_an_area_without_a_unit_is_the_area_of_the_others():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 3, 60), np.round(rng.random((60, 3)), 1)
    for unit in (rng.integers(0, 8, 60), np.arange(60)):
        count = int(unit.max()) + 1
        wanted = np.concatenate([areas(labels, scores, (unit != one)[None].astype(int)) for one in range(count)])
        assert areas_left_out(labels, scores, unit, count, range(scores.shape[1])) == pytest.approx(wanted)


def test_three_patients_prove_little_and_never_leave_0_and_1():
    score = by_patient([10, 9, 8]).accuracy
    assert 0 < score.low < 0.5
    assert 0.9 < score.high < 1


def test_two_patients_allow_no_interval():
    metrics = by_patient([9, 8])
    assert math.isnan(metrics.accuracy.low)
    assert math.isnan(paired_difference(metrics, metrics)["accuracy"].low)
    assert "too few patients, 2 test patients" in metrics.interval


def test_a_patient_with_nearly_all_images_makes_the_interval_wide():
    patient = np.repeat([0, 1, 2], [500, 2, 2])
    labels = np.arange(504) % 2
    predicted = np.where(np.arange(504) % 5 == 0, 1 - labels, labels)
    metrics = measure(labels, predicted, np.eye(2)[predicted], Units("patients", patient), num_bootstrap=100, seed=0)
    assert metrics.accuracy.high - metrics.accuracy.low > 0.5


def test_a_difference_over_three_patients_stays_within_its_range():
    first, second = by_patient([10, 9, 10]), by_patient([2, 9, 6])
    difference = paired_difference(first, second)["accuracy"]
    assert difference.low < 0 < difference.high == 1.0


def test_six_patients_who_all_gain_show_a_difference():
    first, second = by_patient([10, 9, 10, 9, 10, 9]), by_patient([7, 6, 6, 6, 7, 5])
    assert paired_difference(first, second)["accuracy"].low > 0


def test_no_difference_seen_is_no_proof_of_none():
    metrics = by_patient([9, 8, 9, 7, 8, 9])
    difference = paired_difference(metrics, metrics)["accuracy"]
    assert difference.value == 0
    assert difference.high == pytest.approx(1 - 0.025 ** (1 / 6))
    assert difference.low == -difference.high


def test_all_wrong_and_all_right_are_bounded_by_as_many_patients():
    assert by_patient([0] * 5).accuracy.high == pytest.approx(1 - 0.025 ** (1 / 5))
    assert by_patient([10] * 5).balanced_accuracy.low == pytest.approx(0.025 ** (1 / 5))


def test_patients_that_agree_by_accident_prove_no_more_than_their_images():
    score = by_patient([8] * 6).accuracy
    images = math.sqrt(0.8 * 0.2 / 60)
    assert score.high - score.low > 3.9 * images


def test_a_class_of_one_patient_has_no_interval_and_the_others_have():
    labels, patient = np.repeat([0, 0, 0, 1], 10), np.repeat(np.arange(4), 10)
    predicted = np.where(np.arange(40) % 5 == 0, 1 - labels, labels)
    metrics = measure(labels, predicted, np.eye(2)[predicted], Units("patients", patient), num_bootstrap=100, seed=0)
    assert math.isnan(metrics.balanced_accuracy.low)
    assert math.isnan(metrics.by_class["recall"][1].low)
    assert metrics.by_class["recall"][0].low > 0
    assert metrics.accuracy.low > 0
    assert "each class needs two, and all together three" in metrics.interval


def test_a_score_of_few_units_is_wider_than_its_percentiles():
    few = by_patient([9, 8, 10, 7])
    draws = few.samples["accuracy"].draws
    low, high = np.percentile(draws, [2.5, 97.5])
    assert few.accuracy.high - few.accuracy.low > 1.5 * (high - low)


def test_kappa_may_be_negative():
    score = score_interval(-0.2, left_out([-0.5, 0.1, -0.2, -0.1, -0.3]), lowest=-1.0)
    assert -1 < score.low < -0.2 < score.high < 1
    assert isinstance(score, Score)


@pytest.mark.slow
def test_five_patients_cover_the_truth_where_percentiles_do_not():
    rng = np.random.default_rng(1)
    inside = np.zeros(2)
    for _ in range(200):
        metrics = by_patient(rng.binomial(10, rng.beta(8, 2, 5)))
        score, draws = metrics.accuracy, metrics.samples["accuracy"].draws
        low, high = np.percentile(draws, [2.5, 97.5])
        inside += [score.low <= 0.8 <= score.high, low <= 0.8 <= high]
    assert inside[0] / 200 > 0.93
    assert inside[1] / 200 < 0.9
