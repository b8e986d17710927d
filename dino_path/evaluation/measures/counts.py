"""Right and wrong predictions counted in each unit, in resamples of units, and without each unit or image in turn.

Shape suffixes: N test images, C classes (K of them), G units, B bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dino_path.evaluation.measures.confusion import Floats, Ints, Margins, class_sums, confusion_matrix, summary_of
from dino_path.evaluation.measures.intervals import LeftOut
from dino_path.evaluation.measures.sample import Sample, Units, resamples

if TYPE_CHECKING:
    from scipy.sparse import csr_array

MAX_COUNTS_AT_ONCE = 2**22  # of images x classes


def confusion_samples(
    numbers: Callable[[NDArray[Any]], Mapping[str, Floats]], labels_N: Ints, predicted_N: Ints, num_classes: int,
    units: Units, freedom: Mapping[str, float], *, num_bootstrap: int, seed: int,
) -> dict[str, Sample]:  # fmt: skip
    """Any numbers from confusion matrices, with their variation with the tested units.

    Args:
        numbers: confusion matrices (..., C, C) -> the numbers (...) by name.
        freedom: degrees of freedom of each.
    """
    confusion_GCC = confusions_of_units(labels_N, predicted_N, num_classes, units)
    confusion_CC = confusion_GCC.sum(axis=0)
    drawn = numbers(_resampled_confusions(labels_N, predicted_N, num_classes, units, num_bootstrap, seed))
    of_units = numbers(confusion_CC - confusion_GCC)
    of_images = numbers(_confusions_without_image(labels_N, predicted_N, num_classes))
    return {
        name: Sample(float(value), drawn[name], LeftOut(of_units[name] - value, of_images[name] - value, freedom[name]))
        for name, value in numbers(confusion_CC).items()
    }


def confusions_of_units(labels_N: Ints, predicted_N: Ints, num_classes: int, units: Units) -> Ints:
    """Confusion matrices (G, C, C) of the units."""
    cells = (units.index * num_classes + labels_N) * num_classes + predicted_N
    counts = np.bincount(cells, minlength=units.count * num_classes**2)
    return counts.reshape(units.count, num_classes, num_classes).astype(np.int64)


def _confusions_without_image(labels_N: Ints, predicted_N: Ints, num_classes: int) -> Ints:
    """The confusion matrix (N, C, C) without each image in turn."""
    number_N = np.arange(len(labels_N))
    confusion_NCC = np.broadcast_to(
        confusion_matrix(labels_N, predicted_N, num_classes), (len(labels_N), num_classes, num_classes)
    ).copy()
    confusion_NCC[number_N, labels_N, predicted_N] -= 1
    return confusion_NCC


def _resampled_confusions(
    labels_N: Ints, predicted_N: Ints, num_classes: int, units: Units, num_bootstrap: int, seed: int
) -> Floats:
    """Confusion matrices (B, C, C) of the resamples."""
    from scipy.sparse import csr_array  # here, since scipy takes a second to import: refusals come before it

    cells = labels_N * num_classes + predicted_N
    ones = np.ones(len(cells))
    counts_of_units = csr_array((ones, (cells, units.index)), shape=(num_classes**2, units.count))
    chunks = [(counts_of_units @ weights.T.astype(np.float64)).T for weights in resamples(units, num_bootstrap, seed)]
    return np.concatenate(chunks).reshape(num_bootstrap, num_classes, num_classes)


def counts_of_classes(labels_N: Ints, predicted_N: Ints, units: Units, classes: range) -> Margins:
    """Hits, images and predictions (G, K) of K classes in each unit."""

    def counted(number_N: Ints, is_counted_N: NDArray[np.bool_]) -> Ints:
        here_N = is_counted_N & (number_N >= classes.start) & (number_N < classes.stop)
        cells = units.index[here_N] * len(classes) + number_N[here_N] - classes.start
        return np.bincount(cells, minlength=units.count * len(classes)).reshape(units.count, -1).astype(np.int64)

    everywhere_N = np.ones(len(labels_N), bool)
    return Margins(counted(labels_N, labels_N == predicted_N), counted(labels_N, everywhere_N),
                   counted(predicted_N, everywhere_N))  # fmt: skip


def margins_without(labels_N: Ints, predicted_N: Ints, units: Units, classes: range) -> Margins:
    """Hits, images and predictions (G, K) of K classes, without each unit in turn."""
    counts = counts_of_classes(labels_N, predicted_N, units, classes)
    hits, true, predicted = (one.sum(axis=0) - one for one in (counts.hits, counts.true, counts.predicted))
    return Margins(hits, true, predicted)


def summary_without(labels_N: Ints, predicted_N: Ints, units: Units, num_classes: int) -> dict[str, Floats]:
    """The metrics that need no scores (G,), without each unit in turn."""
    sums: dict[str, Floats] = {}
    for classes in parts_of_classes(num_classes, len(labels_N)):
        add_sums(sums, class_sums(margins_without(labels_N, predicted_N, units, classes)))
    return summary_of(sums)


def parts_of_classes(num_classes: int, num_images: int) -> Iterator[range]:
    """All classes in parts, so that an array of images and classes stays small."""
    step = max(1, MAX_COUNTS_AT_ONCE // max(num_images, 1))
    for first in range(0, num_classes, step):
        yield range(first, min(first + step, num_classes))


def add_sums(sums: dict[str, Floats], others: Mapping[str, Floats]) -> None:
    for name, other in others.items():
        sums[name] = sums[name] + other if name in sums else other


def sparse_counts(number_N: Ints, is_counted_N: NDArray[np.bool_], num_classes: int, units: Units) -> csr_array:
    """How often each class (G, C) stands among the counted images of each unit."""
    from scipy.sparse import csr_array  # here, since scipy takes a second to import: refusals come before it

    places = (units.index[is_counted_N], number_N[is_counted_N])
    return csr_array((np.ones(len(places[0])), places), (units.count, num_classes))


def resampled_margins(
    labels_N: Ints, predicted_N: Ints, num_classes: int, units: Units, num_bootstrap: int, seed: int
) -> Margins:
    """Hits, images and predictions (B, C) of the classes in the resamples."""
    everywhere_N = np.ones(len(labels_N), bool)
    counts_CG = [
        sparse_counts(number_N, is_counted_N, num_classes, units).T
        for number_N, is_counted_N in
        ((labels_N, labels_N == predicted_N), (labels_N, everywhere_N), (predicted_N, everywhere_N))
    ]  # fmt: skip
    chunks = [
        [(counts @ weights.T.astype(np.float64)).T for counts in counts_CG]
        for weights in resamples(units, num_bootstrap, seed)
    ]
    hits_BC, true_BC, predicted_BC = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    return Margins(hits_BC, true_BC, predicted_BC)
