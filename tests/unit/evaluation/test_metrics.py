import json
import math
import tracemalloc

import numpy as np
import pytest
from sklearn import metrics as sk

from dino_path.evaluation.measures.confusion import areas, confusion_matrix, summarise
from dino_path.evaluation.measures.intervals import Score
from dino_path.evaluation.measures.metrics import mean_over_draws, measure, paired_difference
from dino_path.evaluation.measures.sample import Units


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=300)
    scores = rng.random((300, 4)) + np.eye(4)[labels] * 0.5
    scores = np.round(scores / scores.sum(axis=1, keepdims=True), 2)  # rounding makes ties
    return labels, scores.argmax(axis=1), scores


def images(count):
    return Units.of(None, None, count)


def test_values_agree_with_scikit_learn(predictions):
    labels, predicted, scores = predictions
    result = measure(labels, predicted, scores, images(300), num_bootstrap=100, seed=0)
    assert result.accuracy.value == pytest.approx(sk.accuracy_score(labels, predicted))
    assert result.balanced_accuracy.value == pytest.approx(sk.balanced_accuracy_score(labels, predicted))
    assert result.macro_f1.value == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    assert result.kappa.value == pytest.approx(sk.cohen_kappa_score(labels, predicted))
    one_versus_rest = [sk.roc_auc_score(labels == label, scores[:, label]) for label in range(4)]
    assert result.auroc.value == pytest.approx(np.mean(one_versus_rest))
    of_class = {name: [score.value for score in scores] for name, scores in result.by_class.items()}
    assert of_class["auroc"] == pytest.approx(one_versus_rest)
    precision, recall, f1, _ = sk.precision_recall_fscore_support(labels, predicted)
    assert of_class["recall"] == pytest.approx(recall)
    assert of_class["precision"] == pytest.approx(precision)
    assert of_class["f1"] == pytest.approx(f1)
    assert (result.confusion == sk.confusion_matrix(labels, predicted)).all()


def test_auroc_with_weights_agrees_with_scikit_learn(predictions):
    labels, _, scores = predictions
    weights = np.random.default_rng(1).integers(0, 3, (2, 300))
    for row, got in zip(weights, areas(labels, scores, weights), strict=True):
        wanted = [sk.roc_auc_score(labels == c, scores[:, c], sample_weight=row) for c in range(4)]
        assert got == pytest.approx(wanted)


def test_a_bootstrap_draw_equals_measuring_the_repeated_images(predictions):
    labels, predicted, _ = predictions
    twice = np.concatenate([np.arange(300), np.arange(50)])
    weights = np.bincount(twice)
    by_weight = np.zeros((4, 4))
    np.add.at(by_weight, (labels, predicted), weights)
    repeated = confusion_matrix(labels[twice], predicted[twice], 4)
    assert (by_weight == repeated).all()
    assert summarise(by_weight)["kappa"] == pytest.approx(sk.cohen_kappa_score(labels[twice], predicted[twice]))


def test_classes_that_do_not_occur_are_left_out_of_the_means():
    confusion = np.array([[8, 2, 0], [1, 9, 0], [0, 0, 0]])
    assert summarise(confusion)["balanced_accuracy"] == pytest.approx(0.85)
    assert summarise(confusion)["macro_f1"] == pytest.approx(
        sk.f1_score([0] * 10 + [1] * 10, [0] * 8 + [1] * 3 + [1] * 8 + [0], average="macro"), abs=0.02
    )


def test_equal_seeds_give_equal_intervals_and_the_value_lies_inside(predictions):
    labels, predicted, scores = predictions
    first = measure(labels, predicted, scores, images(300), num_bootstrap=200, seed=5)
    again = measure(labels, predicted, scores, images(300), num_bootstrap=200, seed=5)
    assert first.accuracy == again.accuracy
    assert first.auroc == again.auroc
    for score in (first.accuracy, first.balanced_accuracy, first.macro_f1, first.kappa, first.auroc):
        assert score.low < score.value < score.high


def test_the_interval_over_images_matches_the_binomial():
    labels = np.zeros(400, np.int64)
    labels[200:] = 1
    predicted = np.where(np.arange(400) % 5 == 0, 1 - labels, labels)  # 80 % right
    scores = np.eye(2)[predicted]
    score = measure(labels, predicted, scores, images(400), num_bootstrap=2000, seed=0).accuracy
    half_width = 1.96 * math.sqrt(0.8 * 0.2 / 400)
    assert score.low == pytest.approx(0.8 - half_width, abs=0.006)
    assert score.high == pytest.approx(0.8 + half_width, abs=0.006)


def simulate_coverage(*, by_group):
    """Share of 150 experiments whose interval holds the true accuracy 0.8; slides differ in difficulty."""
    rng = np.random.default_rng(1)
    num_slides, tiles_per_slide = 40, 10
    slides = np.repeat(np.arange(num_slides), tiles_per_slide).astype(str)
    labels = np.tile(np.arange(2), len(slides) // 2)
    units = Units.of(slides, "slide", len(slides)) if by_group else images(len(slides))
    inside = 0
    for _ in range(150):
        difficulty = rng.beta(1.6, 0.4, num_slides).repeat(tiles_per_slide)
        predicted = np.where(rng.random(len(slides)) < difficulty, labels, 1 - labels)
        score = measure(labels, predicted, np.eye(2)[predicted], units, num_bootstrap=200, seed=0).accuracy
        inside += score.low <= 0.8 <= score.high
    return inside / 150


@pytest.mark.slow
def test_intervals_over_slides_cover_the_truth_and_intervals_over_their_tiles_do_not():
    assert 0.89 <= simulate_coverage(by_group=True) <= 0.99
    assert simulate_coverage(by_group=False) < 0.8


@pytest.mark.slow
def test_the_interval_over_slides_and_label_draws_covers_the_truth():
    rng = np.random.default_rng(3)
    slides = np.repeat(np.arange(40), 10).astype(str)
    labels, units = np.tile(np.arange(2), 200), Units.of(slides, "slide", 400)
    inside = 0
    for _ in range(150):
        # Slides differ in difficulty, and models in how good their five labelled sets made them; 0.8 on average.
        of_slide, of_draw = rng.normal(0, 0.08, 40).repeat(10), rng.normal(0, 0.04, 5)
        is_right = rng.random((5, 400)) < np.clip(0.8 + of_slide + of_draw[:, None], 0, 1)
        predicted = np.where(is_right, labels, 1 - labels)
        score = mean_over_draws(labels, predicted, None, units, num_classes=2, num_bootstrap=200, seed=0)["accuracy"]
        inside += score.low <= 0.8 <= score.high
    assert 0.9 <= inside / 150 <= 1


def test_a_class_that_is_never_predicted_has_no_precision():
    labels = np.array([0, 0, 1, 1])
    result = measure(labels, np.zeros(4, np.int64), np.eye(2)[[0] * 4], images(4), num_bootstrap=100, seed=0)
    assert math.isnan(result.by_class["precision"][1].value)
    assert result.by_class["recall"][1].value == 0
    assert result.record(("a", "b"))["by_class"]["precision"]["b"]["value"] is None


@pytest.mark.slow
def test_the_interval_of_a_paired_difference_over_slides_covers_the_truth():
    rng = np.random.default_rng(2)
    slides = np.repeat(np.arange(40), 10).astype(str)
    labels, units = np.tile(np.arange(2), 200), Units.of(slides, "slide", 400)
    inside = 0
    for _ in range(150):
        # Slides are hard for both models alike; the second loses 0.1 of the images, more on some slides than on others.
        is_right = rng.random(400) < rng.beta(1.6, 0.4, 40).repeat(10)
        is_lost = rng.random(400) < rng.beta(0.5, 3.5, 40).repeat(10)
        first, second = np.where(is_right, labels, 1 - labels), np.where(is_right & ~is_lost, labels, 1 - labels)
        difference = paired_difference(
            *(measure(labels, one, np.eye(2)[one], units, num_bootstrap=200, seed=0) for one in (first, second))
        )
        inside += difference["accuracy"].low <= 0.8 * 0.125 <= difference["accuracy"].high
    assert 0.87 <= inside / 150 <= 0.99


def test_a_perfect_score_does_not_claim_certainty():
    labels = np.array([0, 1] * 5)
    units = Units.of(np.array([str(index // 2) for index in range(10)]), "patient", 10)
    result = measure(labels, labels, np.eye(2)[labels], units, num_bootstrap=100, seed=0)
    # The exact binomial bound for 5 successes in 5 patients.
    assert result.accuracy.low == pytest.approx(0.025 ** (1 / 5))
    assert result.accuracy.high == 1.0


def test_one_patient_gives_no_interval_and_null_in_json():
    labels = np.array([0, 1, 0, 1])
    units = Units.of(np.array(["p"] * 4), "patient", 4)
    result = measure(labels, np.array([0, 1, 1, 1]), np.eye(2)[labels], units, num_bootstrap=100, seed=0)
    assert math.isnan(result.accuracy.low)
    assert json.loads(json.dumps(result.record(("a", "b")), allow_nan=False))["accuracy"] == {
        "value": 0.75,
        "low": None,
        "high": None,
    }
    assert "too few patients, 1 test patients" in result.record(("a", "b"))["interval"]
    assert str(result.accuracy) == "0.750 (no interval)"


def test_a_paired_difference_is_narrower_than_two_intervals_side_by_side(predictions):
    labels, predicted, scores = predictions
    better = predicted.copy()
    wrong = np.flatnonzero(predicted != labels)
    better[wrong[:10]] = labels[wrong[:10]]
    alone = measure(labels, predicted, scores, images(300), num_bootstrap=500, seed=0)
    with_gain = measure(labels, better, np.eye(4)[better], images(300), num_bootstrap=500, seed=0)
    difference = paired_difference(with_gain, alone)
    gain = difference["accuracy"]
    assert gain.value == pytest.approx(10 / 300)
    assert gain.low > 0
    assert gain.high - gain.low < (alone.accuracy.high - alone.accuracy.low) / 2
    assert difference["auroc"].value == pytest.approx(with_gain.auroc.value - alone.auroc.value)
    assert difference["auroc"].low < difference["auroc"].value < difference["auroc"].high


def test_one_draw_of_labels_has_the_interval_of_plain_predictions(predictions):
    labels, predicted, scores = predictions
    plain = measure(labels, predicted, scores, images(300), num_bootstrap=200, seed=3)
    single = mean_over_draws(labels, predicted[None], None, images(300), num_classes=4, num_bootstrap=200, seed=3)
    assert single["accuracy"] == plain.accuracy
    assert single["kappa"] == plain.kappa


def test_draws_of_labels_that_differ_widen_the_interval_and_common_ones_cancel(predictions):
    labels, predicted, _ = predictions
    rng = np.random.default_rng(0)
    draws = np.stack([np.where(rng.random(300) < share, rng.integers(4, size=300), predicted)
                      for share in (0.1, 0.3, 0.5, 0.7, 0.9)])  # fmt: skip
    better = draws.copy()
    better[:, :30] = labels[:30]

    def score(one, other=None):
        return mean_over_draws(labels, one, other, images(300), num_classes=4, num_bootstrap=500, seed=0)["accuracy"]

    wide, alike = score(draws), score(np.stack([draws[2]] * 5))
    assert wide.value == pytest.approx(np.mean(draws == labels))
    assert wide.high - wide.low > 1.5 * (alike.high - alike.low)
    gain = score(better, draws)
    assert gain.value == pytest.approx(np.mean(better == labels) - np.mean(draws == labels))
    assert gain.low > 0
    assert gain.high - gain.low < (wide.high - wide.low) / 2


def test_a_model_does_not_differ_from_itself(predictions):
    labels, predicted, scores = predictions
    metrics = measure(labels, predicted, scores, images(300), num_bootstrap=100, seed=0)
    difference = paired_difference(metrics, metrics)
    assert set(difference.values()) == {Score(0.0, 0.0, 0.0)}  # of 300 images


def test_an_interval_below_zero_reads_without_two_dashes():
    assert str(Score(-0.07, -0.09, -0.05)) == "-0.070 (-0.090 to -0.050)"
    assert str(Score(0.7, 0.6, 0.8)) == "0.700 (0.600-0.800)"


def test_many_classes_take_little_memory_and_give_what_scikit_learn_gives() -> None:
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(400), rng.integers(400, size=400)])
    scores = rng.random((800, 400)) + np.eye(400)[labels] * 0.3
    scores /= scores.sum(axis=1, keepdims=True)
    predicted = scores.argmax(axis=1)
    tracemalloc.start()
    result = measure(labels, predicted, scores, images(800), num_bootstrap=100, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e8  # one confusion matrix for each image would be 1 GB
    assert result.balanced_accuracy.value == pytest.approx(sk.balanced_accuracy_score(labels, predicted))
    assert result.kappa.value == pytest.approx(sk.cohen_kappa_score(labels, predicted))
    assert result.by_class["auroc"][7].value == pytest.approx(sk.roc_auc_score(labels == 7, scores[:, 7]))
