import time

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dino_path.evaluation.protocols import linear
from dino_path.evaluation.protocols.linear import C_GRID, linear_probe, logistic, logistic_uni


def make(num_images, num_features, num_classes=3, noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(num_images) % num_classes
    centres = np.random.default_rng(99).normal(size=(num_classes, num_features))
    return (centres[labels] + noise * rng.normal(size=(num_images, num_features))).astype(np.float32), labels


def probe(fit, validation, query, *, refit=True, num_classes=3):
    return linear_probe(*fit, *validation, query, num_classes=num_classes, refit_with_validation=refit)


def test_the_last_fit_is_scikit_learns_on_all_training_images_standardised():
    fit, validation, (query, labels) = (
        make(200, 8, noise=3.0),
        make(60, 8, noise=3.0, seed=1),
        make(90, 8, noise=3.0, seed=2),
    )
    result = probe(fit, validation, query)
    train = np.concatenate([fit[0], validation[0]]).astype(np.float64)
    scaler = StandardScaler().fit(train)
    model = LogisticRegression(C=result.c, max_iter=1000).fit(
        scaler.transform(train), np.concatenate([fit[1], validation[1]])
    )
    assert result.scores == pytest.approx(model.predict_proba(scaler.transform(query.astype(np.float64))), abs=1e-4)
    assert (result.predicted == labels).mean() > 0.45
    assert result.has_converged


def test_the_strength_of_lowest_validation_log_loss_is_chosen():
    fit, validation = make(60, 64, noise=4.0), make(300, 64, noise=4.0, seed=1)
    result = probe(fit, validation, validation[0])
    assert [trial.c for trial in result.trials] == list(C_GRID)
    assert result.c == min(result.trials, key=lambda trial: trial.log_loss).c
    assert result.c < C_GRID[-1]  # 60 noisy images in 64 dimensions need a strong penalty


def test_a_given_validation_part_is_not_trained_on():
    fit, (features, labels) = make(120, 6), make(60, 6, seed=1)
    wrong = (features, (labels + 1) % 3)  # would spoil the fit if it took part
    query, query_labels = make(90, 6, seed=2)
    without = (probe(fit, wrong, query, refit=False).predicted == query_labels).mean()
    with_it = (probe(fit, wrong, query, refit=True).predicted == query_labels).mean()
    assert without > with_it + 0.1


def test_scale_and_shift_of_features_change_nothing_and_constants_do_no_harm():
    fit, validation, (query, _) = make(120, 6), make(60, 6, seed=1), make(60, 6, seed=2)

    def moved(features):
        shifted = features * np.array([1, 1000, 1e-3, 1, 1, 1], np.float32) + 5
        return np.concatenate([shifted, np.full((len(features), 1), 7, np.float32)], axis=1)

    plain = probe(fit, validation, query)
    changed = probe((moved(fit[0]), fit[1]), (moved(validation[0]), validation[1]), moved(query))
    assert changed.scores == pytest.approx(plain.scores, abs=2e-3)


def test_a_fit_that_runs_out_of_iterations_says_so(monkeypatch):
    monkeypatch.setattr(linear, "MAX_ITERATIONS", 1)
    fit, validation = make(120, 6), make(60, 6, seed=1)
    assert not probe(fit, validation, validation[0]).has_converged


def test_unis_rule_is_scikit_learns_fit_of_the_plain_features_with_its_c():
    (train, labels), (query, _) = make(200, 50, noise=3.0), make(90, 50, noise=3.0, seed=1)
    result = logistic_uni(train, labels, query)
    assert result.c == 50 * 3 / 100
    model = LogisticRegression(C=1.5, max_iter=1000).fit(train.astype(np.float64), labels)
    assert result.scores == pytest.approx(model.predict_proba(query.astype(np.float64)), abs=1e-4)
    assert result.trials == ()


@pytest.mark.slow
def test_two_thousand_images_of_192_features_take_less_than_ten_seconds():
    start_s = time.monotonic()
    probe(make(1600, 192, 9, noise=3.0), make(400, 192, 9, noise=3.0, seed=1), make(1000, 192, 9)[0], num_classes=9)
    assert time.monotonic() - start_s < 10


def test_a_few_colours_are_as_strong_a_control_as_many_features():
    """Three features that lie close together, as mean colours do: UNI's strength leaves them no say."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [120, 80])
    features = (0.7 + 0.02 * labels[:, None] + 0.02 * rng.normal(size=(200, 3))).astype(np.float32)
    train, test = np.arange(200) % 2 == 0, np.arange(200) % 2 == 1
    found = logistic(features[train], labels[train], features[test])
    assert (found.predicted == labels[test]).mean() > 0.75
    assert found.c == pytest.approx(10 / 3)
    assert (logistic_uni(features[train], labels[train], features[test]).predicted == 0).all()
