"""A classifier's loss at a new centre, and whether the centre can be predicted from the features.

Both by logistic regression of a fixed strength (`linear.logistic`), by patient: no patient is on both sides. "Maker" is
a centre or a scanner.

Shape suffixes: N images of the cohort, T tested ones, D features, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dino_path.errors import DataError
from dino_path.evaluation.labelled.splits import draw_folds
from dino_path.evaluation.measures.confusion import Floats, Ints, confusion_matrix, summarise
from dino_path.evaluation.measures.metrics import Metrics, measure
from dino_path.evaluation.measures.sample import Units
from dino_path.evaluation.protocols.linear import logistic
from dino_path.evaluation.protocols.makers import Cohort

MOST_FOLDS = 5


@dataclass(frozen=True)
class HeldOut:
    """The same images tested twice: with other patients of their maker in training, and without their maker.

    Attributes:
        by_maker: balanced accuracy of each maker's images when it was left out.
    """

    same: Metrics
    new: Metrics
    by_maker: dict[str, float]


def leave_one_maker_out(features_ND: NDArray[np.float32], cohort: Cohort, *, num_bootstrap: int, seed: int) -> HeldOut:
    """Accuracies at a new maker and at known ones, of the images whose class is known from two makers or more.

    Either way about as many images are trained on: patients are divided into as many folds as there are makers, 5 at
    most.

    Raises:
        DataError: fewer than two classes are of two makers with two patients (slides, images) each.
    """
    is_tested_N, cell_N = _testable(cohort)
    tested = np.flatnonzero(is_tested_N)
    classes = classes_at_new_makers(cohort)
    own_fold_N = np.full(len(cell_N), -1)
    own_fold_N[tested] = _folds(cohort, tested, cell_N[tested], min(max(2, len(cohort.names)), MOST_FOLDS), seed)
    same_NC, new_NC = (np.zeros((len(cell_N), len(classes))) for _ in range(2))
    for fold in range(own_fold_N.max() + 1):
        test = np.flatnonzero(own_fold_N == fold)
        train = ~np.isin(cohort.units.index, cohort.units.index[test])
        same_NC[test] = _scores(features_ND, cohort.labels, train, test, classes)
    for maker in np.unique(cohort.makers[tested]):
        test = tested[cohort.makers[tested] == maker]
        train = (cohort.makers != maker) & ~np.isin(cohort.units.index, cohort.units.index[test])
        new_NC[test] = _scores(features_ND, cohort.labels, train, test, classes)
    number_T = np.searchsorted(classes, cohort.labels[tested]).astype(np.int64)
    units = Units(cohort.units.name, _renumbered(cohort.units.index[tested]))
    same, new = (
        measure(number_T, scores[tested].argmax(axis=1), scores[tested], units, num_bootstrap=num_bootstrap, seed=seed)
        for scores in (same_NC, new_NC)
    )
    predicted_T = new_NC[tested].argmax(axis=1).astype(np.int64)
    by_maker = {}
    for maker in np.unique(cohort.makers[tested]):
        own = cohort.makers[tested] == maker
        confusion = confusion_matrix(number_T[own], predicted_T[own], len(classes))
        by_maker[cohort.names[maker]] = float(summarise(confusion)["balanced_accuracy"])
    return HeldOut(same, new, by_maker)


def classes_at_new_makers(cohort: Cohort) -> Ints:
    """Numbers of the classes that can be tested at a new maker.

    Raises:
        DataError: fewer than two classes are of two makers with two patients (slides, images) each.
    """
    classes = np.unique(cohort.labels[_testable(cohort)[0]])
    if len(classes) < 2:
        raise _too_few(cohort, "fewer than two classes are found in two {kind}s, each with two of the {unit}.")
    return classes


@dataclass(frozen=True)
class Predictability:
    """How well the maker can be predicted from features within one class.

    Attributes:
        metrics: over cells (class and maker); its balanced accuracy is the figure.
        chance: what guessing gives.
    """

    metrics: Metrics
    chance: float


def maker_predictability(
    features_ND: NDArray[np.float32], cohort: Cohort, *, num_bootstrap: int, seed: int
) -> Predictability:
    """Balanced accuracy of telling the maker within each class, on patients that were not trained on.

    Raises:
        DataError: no class is of two makers with two patients (slides, images) each.
    """
    is_tested_N, cell_N = _testable(cohort)
    if not is_tested_N.any():
        raise _too_few(cohort, "no class is found in two {kind}s, each with two of the {unit}.")
    cells = np.unique(cell_N[is_tested_N])
    scores_NC = np.zeros((len(cell_N), len(cells)))
    for label in np.unique(cohort.labels[is_tested_N]):
        members = np.flatnonzero(is_tested_N & (cohort.labels == label))
        fold = _folds(cohort, members, cell_N[members], MOST_FOLDS, seed)
        for number in range(fold.max() + 1):
            test = members[fold == number]
            train = np.isin(np.arange(len(cell_N)), members[fold != number])
            scores_NC[test] = _scores(features_ND, cell_N, train, test, cells)
    tested = np.flatnonzero(is_tested_N)
    number_T = np.searchsorted(cells, cell_N[tested]).astype(np.int64)
    units = Units(cohort.units.name, _renumbered(cohort.units.index[tested]))
    metrics = measure(
        number_T, scores_NC[tested].argmax(axis=1), scores_NC[tested], units, num_bootstrap=num_bootstrap, seed=seed
    )
    class_of_cell = cells // len(cohort.names)
    return Predictability(metrics, float(np.mean([1 / (class_of_cell == one).sum() for one in class_of_cell])))


def _testable(cohort: Cohort) -> tuple[NDArray[np.bool_], Ints]:
    """Images (N,) of cells (class and maker) with two units, where the class has two such cells; and the cell (N,)."""
    cell_N = cohort.labels * len(cohort.names) + cohort.makers
    pairs = np.unique(np.stack([cell_N, cohort.units.index], axis=1), axis=0)
    cells, num_units = np.unique(pairs[:, 0], return_counts=True)
    large = cells[num_units >= 2]
    label_of = large // len(cohort.names)
    good = large[np.isin(label_of, [label for label in np.unique(label_of) if (label_of == label).sum() >= 2])]
    return np.isin(cell_N, good), cell_N


def _folds(cohort: Cohort, members: Ints, cell: Ints, most: int, seed: int) -> Ints:
    """Folds of the members by unit, in which every cell stays for training."""
    units = _renumbered(cohort.units.index[members])
    names = tuple(
        f"{cohort.classes[c // len(cohort.names)]}, {cohort.names[c % len(cohort.names)]}" for c in np.unique(cell)
    )
    return draw_folds(
        _renumbered(cell), units, min(most, int(units.max()) + 1), seed=[seed], what=f"{cohort.kind}s", classes=names,
        unit_name=cohort.units.name,
    )  # fmt: skip


def _scores(
    features_ND: NDArray[np.float32], target_N: Ints, train_N: NDArray[np.bool_], test: Ints, targets: Ints
) -> Floats:
    """Probabilities of the test images for each of `targets`; 0 for what the training images do not have."""
    train = np.flatnonzero(train_N & np.isin(target_N, targets))
    known, number = np.unique(target_N[train], return_inverse=True)
    scores = np.zeros((len(test), len(targets)))
    columns = np.searchsorted(targets, known)
    if len(known) == 1:
        scores[:, columns] = 1.0
    else:
        scores[:, columns] = logistic(features_ND[train], number.astype(np.int64), features_ND[test]).scores
    return scores


def _renumbered(values: Ints) -> Ints:
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _too_few(cohort: Cohort, found: str) -> DataError:
    words = {"kind": cohort.kind, "unit": cohort.units.name}
    return DataError(
        f"{cohort.kind}s",
        found.format(**words),
        "A class can be tested at a new {kind} only if other {kind}s also have it, from several {unit}.".format(
            **words
        ),
        "Add data, or read the figures that need no training.",
    )
