"""Calibration against scikit-learn, against closed forms, and by simulated patients."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from dino_path.evaluation.measures.calibration import NUM_BINS, ece_if_calibrated, reliability
from dino_path.evaluation.measures.metrics import measure, paired_difference
from dino_path.evaluation.measures.sample import Units


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=500)
    scores = rng.dirichlet(np.ones(4), 500) + np.eye(4)[labels] * 0.4
    return labels, scores / scores.sum(axis=1, keepdims=True)


def measured(labels, scores, units=None, num_bootstrap=100):
    units = units or Units.of(None, None, len(labels))
    return measure(labels, scores.argmax(axis=1), scores, units, num_bootstrap=num_bootstrap, seed=0)


def binary(probability_N):
    return np.stack([1 - probability_N, probability_N], axis=1)


def test_the_reliability_curve_and_the_error_agree_with_scikit_learn(predictions):
    labels, scores = predictions
    confidence, right = scores.max(axis=1), scores.argmax(axis=1) == labels
    accuracies, confidences = calibration_curve(right, confidence, n_bins=NUM_BINS)
    result = measured(labels, scores)
    known = [one for one in result.reliability if one.num_images]
    assert [one.accuracy for one in known] == pytest.approx(accuracies)
    assert [one.confidence for one in known] == pytest.approx(confidences)
    counts = np.array([one.num_images for one in known])
    assert counts.sum() == 500
    assert result.ece.value == pytest.approx((counts * np.abs(accuracies - confidences)).sum() / 500)


def test_the_brier_score_agrees_with_scikit_learn_and_is_twice_the_one_sided_one_of_two_classes(predictions):
    labels, scores = predictions
    one_versus_rest = [brier_score_loss(labels == label, scores[:, label]) for label in range(4)]
    assert measured(labels, scores).brier.value == pytest.approx(sum(one_versus_rest))
    is_first, probability = (labels == 0).astype(int), scores[:, 0]
    assert measured(is_first, binary(probability)).brier.value == pytest.approx(
        2 * brier_score_loss(is_first, probability)
    )


def test_an_upper_edge_belongs_to_its_bin():
    bins = reliability(np.zeros(3, int), np.zeros(3, int), binary(np.array([0.0, 0.2, 0.4])))  # right at 1, 0.8 and 0.6
    assert [(one.high, one.num_images) for one in bins if one.num_images] == [(0.6, 1), (0.8, 1), (1.0, 1)]
    assert all(one.confidence is None and one.accuracy is None for one in bins if not one.num_images)


def test_certain_and_right_has_no_error_and_certain_and_wrong_the_largest():
    labels = np.array([0, 1, 0, 1])
    right, wrong = measured(labels, np.eye(2)[labels]), measured(labels, np.eye(2)[1 - labels])
    assert (right.ece.value, right.brier.value) == (0, 0)
    assert (wrong.ece.value, wrong.brier.value) == (1, 2)
    assert 0 < right.brier.high <= 2
    assert 0 <= wrong.brier.low < 2
    assert right.ece_if_calibrated == 0


def test_always_saying_so_much_is_off_by_the_difference():
    """70 of 100 are right and each is given 0.9: |0.9 - 0.7|, and 2 (0.7 x 0.1^2 + 0.3 x 0.9^2)."""
    result = measured(np.repeat([1, 0], [70, 30]), binary(np.full(100, 0.9)))
    assert result.ece.value == pytest.approx(0.2)
    assert result.brier.value == pytest.approx(0.5)


def test_true_probabilities_have_the_error_that_chance_makes():
    rng = np.random.default_rng(1)
    probability = rng.uniform(0.5, 1, 400)
    errors = [measured((rng.random(400) < probability).astype(int), binary(probability)).ece.value for _ in range(60)]
    expected = ece_if_calibrated(binary(probability), seed=0)
    assert np.mean(errors) == pytest.approx(expected, rel=0.1)
    # One bin: the mean distance of a binomial share from its probability, sqrt(2 p (1 - p) / (pi n)).
    one_bin = ece_if_calibrated(binary(np.full(400, 0.7)), seed=0)
    assert one_bin == pytest.approx(np.sqrt(2 * 0.7 * 0.3 / np.pi / 400), rel=0.15)


def test_intervals_over_patients_cover_the_truth_of_probabilities_that_are_too_sure():
    """Where the error is well above what chance makes; of true probabilities no interval of the error reaches 0."""
    rng = np.random.default_rng(2)

    def drawn(num_patients):
        patient = np.repeat(np.arange(num_patients), 20)
        logit = rng.normal(0, 1.5, len(patient)) + rng.normal(0, 0.5, num_patients)[patient]
        labels = (rng.random(len(patient)) < 1 / (1 + np.exp(-logit))).astype(int)
        return labels, binary(1 / (1 + np.exp(-2 * logit))), Units("patients", patient)

    truth = measured(*drawn(5000), num_bootstrap=1)
    found = [measured(*drawn(15)) for _ in range(100)]
    for name in ("ece", "brier"):
        true = getattr(truth, name).value
        covered = sum(getattr(one, name).low <= true <= getattr(one, name).high for one in found)
        assert covered >= 88, name


def test_true_probabilities_are_better_than_surer_ones_by_a_difference_below_zero():
    rng = np.random.default_rng(3)
    scores = rng.dirichlet(np.ones(4), 600)
    labels = (rng.random((600, 1)) > scores.cumsum(axis=1)).sum(axis=1)
    sure = scores**4 / (scores**4).sum(axis=1, keepdims=True)
    true, surer = measured(labels, scores), measured(labels, sure)
    difference = paired_difference(true, surer)
    assert difference["brier"].high < 0
    assert difference["ece"].high < 0
    assert difference["brier"].value == pytest.approx(true.brier.value - surer.brier.value)
