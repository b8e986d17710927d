import numpy as np
import pytest

from dino_path.errors import DataError
from dino_path.evaluation.labelled.splits import draw_part, linked_units


def draw(labels, units, fraction=0.3, seed=0):
    classes = tuple(f"class{number}" for number in range(labels.max() + 1))
    return draw_part(labels, units, fraction, seed=seed, what="data", classes=classes, unit_name="patients")


def distinct(count):
    return np.array([f"{index:032d}" for index in range(count)], np.bytes_)


def test_images_of_one_group_share_a_unit():
    units = linked_units(np.array(["b", "a", "b", "c"]), distinct(4))
    assert units[0] == units[2]
    assert len(set(units.tolist())) == 3


def test_identical_images_join_the_groups_they_lie_in():
    content = distinct(5)
    content[4] = content[0]  # group a and group c share an image
    units = linked_units(np.array(["a", "a", "b", "c", "c"]), content)
    assert units[0] == units[1] == units[3] == units[4] != units[2]


def test_without_groups_only_identical_images_are_joined():
    content = distinct(4)
    content[3] = content[1]
    units = linked_units(None, content)
    assert units[3] == units[1]
    assert len(set(units.tolist())) == 3


def test_no_unit_is_torn_apart_and_every_class_has_about_its_share():
    rng = np.random.default_rng(0)
    units = np.sort(rng.integers(60, size=1200))
    units = np.unique(units, return_inverse=True)[1]
    labels = units % 3  # each patient has one class
    chosen = draw(labels, units)
    assert not set(units[chosen]) & set(units[~chosen])
    for label in range(3):
        assert chosen[labels == label].mean() == pytest.approx(0.3, abs=0.06)


def test_patients_with_several_classes_are_balanced_too():
    rng = np.random.default_rng(1)
    units = np.repeat(np.arange(40), 25)
    labels = (rng.random(1000) < rng.beta(1, 1, 40).repeat(25)).astype(np.int64)
    chosen = draw(labels, units)
    assert not set(units[chosen]) & set(units[~chosen])
    for label in range(2):
        assert chosen[labels == label].mean() == pytest.approx(0.3, abs=0.06)


def test_single_images_are_divided_exactly():
    labels = np.repeat([0, 1], [100, 10])
    chosen = draw(labels, np.arange(110))
    assert chosen[labels == 0].sum() == 30
    assert chosen[labels == 1].sum() == 3


def test_equal_seeds_give_equal_parts_and_other_seeds_other_ones():
    labels = np.repeat([0, 1], 100)
    units = np.arange(200) // 4
    assert (draw(labels, units, seed=1) == draw(labels, units, seed=1)).all()
    assert (draw(labels, units, seed=1) != draw(labels, units, seed=2)).any()


def test_the_smallest_class_stands_on_both_sides():
    labels = np.array([0] * 50 + [1] * 2)
    for seed in range(10):
        chosen = draw(labels, np.arange(52), fraction=0.05, seed=seed)
        assert chosen[labels == 1].sum() == 1


def test_a_class_of_one_patient_is_refused_by_name_and_count():
    labels = np.array([0, 0, 0, 1, 1])
    with pytest.raises(DataError, match=r"too few patients to divide: class1 \(1\)"):
        draw(labels, np.array([0, 1, 2, 3, 3]))


def test_a_division_that_cannot_be_is_refused():
    # Two patients: one of them holds all of class 1 but one image, both hold class 0; fine. Three classes that only
    # ever occur together in opposite patients cannot all stand on both sides.
    labels = np.array([0, 1, 1, 2, 2, 0])
    units = np.array([0, 0, 1, 1, 2, 2])
    with pytest.raises(DataError, match="no split of its 3 patients"):
        draw(labels, units)
