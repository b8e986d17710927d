import numpy as np
import pytest
from made_up_centres import cohort_of, made_up
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from dino_path.errors import DataError
from dino_path.evaluation.protocols.held_out import leave_one_maker_out, maker_predictability

HOW = {"num_bootstrap": 200, "seed": 0}


def test_accuracy_at_a_new_centre_is_that_of_a_classifier_of_the_others():
    features, cohort = made_up()
    found = leave_one_maker_out(features, cohort, **HOW)
    predicted = np.empty(600, int)
    for maker in range(3):
        train, test = cohort.makers != maker, cohort.makers == maker
        mean, std = features[train].mean(axis=0, dtype=float), features[train].std(axis=0, dtype=float)
        model = LogisticRegression(C=10 / 16, max_iter=1000).fit((features[train] - mean) / std, cohort.labels[train])
        predicted[test] = model.predict((features[test] - mean) / std)
        expected = balanced_accuracy_score(cohort.labels[test], predicted[test])
        assert found.by_maker[f"centre{maker}"] == pytest.approx(expected, abs=1e-9)
    assert found.new.balanced_accuracy.value == pytest.approx(balanced_accuracy_score(cohort.labels, predicted))
    assert (found.new.num_images, found.same.num_images, found.new.num_units) == (600, 600, 30)


def test_a_centre_that_turns_the_class_round_is_a_drop():
    """In each centre a direction of its own tells the classes: known patients' centres help, another one does not."""
    rng = np.random.default_rng(0)
    _, cohort = made_up()
    own = rng.normal(size=(3, 3, 16))[cohort.makers, cohort.labels]
    features = (own + 0.5 * rng.normal(size=own.shape)).astype(np.float32)
    found = leave_one_maker_out(features, cohort, **HOW)
    drop = (found.same.samples["balanced_accuracy"] - found.new.samples["balanced_accuracy"]).difference()
    assert drop.value == pytest.approx(found.same.balanced_accuracy.value - found.new.balanced_accuracy.value)
    assert drop.low > 0.2


def test_the_same_tissue_everywhere_is_no_drop():
    found = leave_one_maker_out(*made_up(of_class=2, of_maker=0, of_patient=0), **HOW)
    drop = (found.same.samples["balanced_accuracy"] - found.new.samples["balanced_accuracy"]).difference()
    assert drop.low < 0 < drop.high


def test_a_centre_that_leaves_no_trace_is_told_by_chance_only():
    blind = maker_predictability(*made_up(of_maker=0, of_patient=0), **HOW)
    seen = maker_predictability(*made_up(of_maker=4, of_patient=0), **HOW)
    assert blind.chance == pytest.approx(1 / 3)
    assert blind.metrics.balanced_accuracy.low < 1 / 3 < blind.metrics.balanced_accuracy.high
    assert seen.metrics.balanced_accuracy.value > 0.9


def test_a_patient_alone_does_not_give_the_centre_away():
    """Patients are strong and centres nothing: read on the same patients, the centre would be known without fail."""
    found = maker_predictability(*made_up(of_class=0, of_maker=0, of_patient=3), **HOW)
    assert found.metrics.balanced_accuracy.low < 1 / 3 < found.metrics.balanced_accuracy.high


def test_cells_of_one_patient_are_trained_on_and_not_tested():
    features, cohort = made_up()
    single = (cohort.labels == 0) & (cohort.makers == 0)
    patients = np.where(single, 99, cohort.groups)
    found = leave_one_maker_out(features, cohort_of(cohort.labels, cohort.makers, patients), **HOW)
    assert found.new.num_images == 600 - single.sum()
    told = maker_predictability(features, cohort_of(cohort.labels, cohort.makers, patients), **HOW)
    assert told.chance == pytest.approx((2 * 1 / 2 + 6 * 1 / 3) / 8)


def test_classes_of_one_centre_each_are_refused_with_what_is_needed():
    features, cohort = made_up()
    confounded = cohort_of(cohort.makers, cohort.makers, cohort.groups)
    with pytest.raises(DataError, match="fewer than two classes are found in two centres"):
        leave_one_maker_out(features, confounded, **HOW)
    with pytest.raises(DataError, match="no class is found in two centres"):
        maker_predictability(features, confounded, **HOW)
