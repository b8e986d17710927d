"""Dice and IoU against scikit-learn's F1 and Jaccard scores of pixels, and intervals against leaving units out."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, jaccard_score

from dino_path.evaluation.measures.overlap import (
    UNKNOWN,
    class_overlap,
    mask_confusion,
    measure_overlap,
    overlap_difference,
)
from dino_path.evaluation.measures.sample import Units

NUM_CLASSES = 3


def masks(seed: int, count: int = 6) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """True masks, and predicted ones that agree in two thirds of the pixels; images differ in size."""
    rng = np.random.default_rng(seed)
    true = [rng.integers(0, NUM_CLASSES, (9 + 2 * number, 11)).astype(np.uint8) for number in range(count)]
    predicted = [
        np.where(rng.random(one.shape) < 2 / 3, one, rng.integers(0, NUM_CLASSES, one.shape)).astype(np.uint8)
        for one in true
    ]
    return true, predicted


def confusions(true: list[np.ndarray], predicted: list[np.ndarray]) -> np.ndarray:
    return np.stack([mask_confusion(t, p, NUM_CLASSES) for t, p in zip(true, predicted, strict=True)])


def images(count: int) -> Units:
    return Units("images", np.arange(count))


def measured(confusion: np.ndarray, units: Units, counted: tuple[int, ...] = (1, 2)):
    return measure_overlap(confusion, units, counted, num_bootstrap=100, seed=0)


@pytest.mark.parametrize(("measure", "of_pixels"), [("dice", f1_score), ("iou", jaccard_score)])
def test_each_class_has_the_score_of_its_pixels_by_image_and_pooled(measure, of_pixels) -> None:
    true, predicted = masks(0)
    overlap = measured(confusions(true, predicted), images(len(true)))
    by_image = [of_pixels(t.ravel(), p.ravel(), average=None) for t, p in zip(true, predicted, strict=True)]
    pooled = of_pixels(
        np.concatenate([t.ravel() for t in true]), np.concatenate([p.ravel() for p in predicted]), average=None
    )
    assert [s.value for s in overlap.by_class["image"][measure]] == pytest.approx(np.mean(by_image, axis=0))
    assert [s.value for s in overlap.by_class["pooled"][measure]] == pytest.approx(pooled)
    assert overlap.mean["pooled"][measure].value == pytest.approx(pooled[1:].mean()), "class 0 is not counted"
    assert "patient" not in overlap.mean


def test_by_patient_all_pixels_of_a_patient_are_one_score() -> None:
    true, predicted = masks(1)
    units = Units("patients", np.array([0, 1, 0, 2, 2, 2]))
    of_patients = [
        f1_score(
            np.concatenate([true[n].ravel() for n in np.flatnonzero(units.index == patient)]),
            np.concatenate([predicted[n].ravel() for n in np.flatnonzero(units.index == patient)]),
            average=None,
        )
        for patient in range(3)
    ]
    overlap = measured(confusions(true, predicted), units)
    assert overlap.mean["patient"]["dice"].value == pytest.approx(np.mean(of_patients, axis=0)[1:].mean())
    assert "3 test patients" in overlap.interval


def test_a_class_that_is_in_neither_mask_is_not_known_and_one_only_predicted_has_0() -> None:
    nothing, first = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    first[0] = 1
    confusion = confusions([nothing, first], [nothing, first])
    assert np.isnan(class_overlap(confusion)["dice"][0, 1])
    assert measured(confusion, images(2), (1,)).mean["image"]["dice"].value == 1.0, "of the one image that has it"
    assert np.isnan(measured(confusion, images(2)).by_class["image"]["dice"][2].value), "nowhere at all"
    invented = confusions([nothing, first], [first, first])
    assert class_overlap(invented)["iou"][0, 1] == 0
    assert measured(invented, images(2), (1,)).mean["image"]["dice"].value == 0.5


def test_pixels_that_nobody_knows_count_nowhere() -> None:
    true, predicted = np.array([[1, 1, UNKNOWN, 0]], np.uint8), np.array([[1, 0, 1, 0]], np.uint8)
    assert class_overlap(mask_confusion(true, predicted, 2))["dice"].tolist() == pytest.approx([2 / 3, 2 / 3])


@pytest.mark.parametrize("average", ["image", "patient", "pooled"])
def test_leaving_out_a_unit_or_an_image_gives_the_score_of_the_others(average) -> None:
    true, predicted = masks(2)
    confusion, index = confusions(true, predicted), np.array([0, 0, 1, 1, 2, 2])
    overlap = measured(confusion, Units("patients", index))
    sample = overlap.samples[average, "dice"]
    for unit in range(3):
        others = index != unit
        rest = Units("patients", np.unique(index[others], return_inverse=True)[1])
        value = measured(confusion[others], rest).mean[average]["dice"].value
        assert sample.value + sample.left_out.units[unit] == pytest.approx(value)
    for image in range(6):
        others = np.arange(6) != image
        value = measured(confusion[others], Units("patients", index[others])).mean[average]["dice"].value
        assert sample.value + sample.left_out.images[image] == pytest.approx(value)


def test_many_images_have_a_bootstrap_interval_that_holds_the_middle_of_resampled_means() -> None:
    true, predicted = masks(3, count=150)
    confusion = confusions(true, predicted)
    score = measure_overlap(confusion, images(150), (1,), num_bootstrap=2000, seed=0).mean["image"]["dice"]
    dice = class_overlap(confusion)["dice"][:, 1]
    rng = np.random.default_rng(5)
    means = [dice[rng.integers(0, 150, 150)].mean() for _ in range(2000)]
    assert [score.low, score.high] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.002)


def test_a_difference_is_paired() -> None:
    true, predicted = masks(4)
    mine, other = (measured(confusions(true, one), images(6)) for one in (true, predicted))
    difference = overlap_difference(mine, other)["pooled"]["iou"]
    assert difference.value == pytest.approx(1 - other.mean["pooled"]["iou"].value)
    same = overlap_difference(other, other)["image"]["dice"]
    assert same.value == 0
    assert same.low < 0 < same.high, "six images that were answered alike do not prove two models equal"
