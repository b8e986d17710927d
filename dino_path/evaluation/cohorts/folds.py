"""Who is tested by models of whom: folds of whole patients, drawn several times, or the centres.

Shape suffixes: N cases, R repeats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dino_path.config import CohortConfig
from dino_path.errors import DataError
from dino_path.evaluation.cohorts.cohort import Cohort
from dino_path.evaluation.labelled.splits import draw_folds
from dino_path.evaluation.measures.confusion import Ints


@dataclass(frozen=True)
class Fold:
    """One division: numbers of the cases that train, and of those that are tested. `repeat` and `fold` count from 1."""

    repeat: int
    fold: int
    train: Ints
    test: Ints


@dataclass(frozen=True)
class Folds:
    """All folds of a cohort, for all repeats.

    Attributes:
        fold_of: (R, N) fold of each case in each repeat, from 0.
        names: of the folds, where they are centres.
    """

    fold_of: Ints
    names: tuple[str, ...] | None = None

    @property
    def num_repeats(self) -> int:
        return len(self.fold_of)

    @property
    def num_folds(self) -> int:
        return int(self.fold_of.max()) + 1

    def __len__(self) -> int:
        return self.num_repeats * self.num_folds

    def __iter__(self) -> Iterator[Fold]:
        for repeat, fold_N in enumerate(self.fold_of):
            for fold in range(self.num_folds):
                yield Fold(repeat + 1, fold + 1, np.flatnonzero(fold_N != fold), np.flatnonzero(fold_N == fold))

    def rule(self, cohort: Cohort, config: CohortConfig) -> str:
        """How they were made, in words."""
        unit = cohort.units.name
        if self.names is not None:
            return f"each of {self.num_folds} centres is tested with models trained on the others"
        stratified = "event" if cohort.task == "survival" else "class"
        times = f", drawn {self.num_repeats} times" if self.num_repeats > 1 else ""
        return f"{self.num_folds} folds of {unit}, stratified by {stratified}, seed {config.seed}{times}"


def draw_cohort_folds(cohort: Cohort, config: CohortConfig) -> Folds:
    """The folds of a cohort.

    Raises:
        DataError: no centres, a patient of two, or a training part would lack a class (an event).
    """
    if config.by_centre:
        return _centres(cohort)
    fold_RN = [
        draw_folds(
            cohort.labels, cohort.units.index, config.folds, seed=[config.seed, repeat], what=cohort.name,
            classes=cohort.classes, unit_name=cohort.units.name, setting="cohort.folds",
        )
        for repeat in range(config.repeats)
    ]  # fmt: skip
    return Folds(np.stack(fold_RN))


def fold_notes(cohort: Cohort, folds: Folds) -> list[str]:
    """Limitations of the folds, as sentences."""
    if cohort.task == "survival":
        return []
    lacking = [fold for fold in folds if len(np.unique(cohort.labels[fold.test])) < len(cohort.classes)]
    if not lacking:
        return []
    return [
        f"{len(lacking)} of {len(folds)} test parts lack some classes: the area under the ROC curve compares cases"
        f" within a test part, so these contribute less"
    ]


def _centres(cohort: Cohort) -> Folds:
    needed = "At least two centres are needed, each patient in one centre, and every class in two centres."
    if cohort.centres is None:
        raise DataError(
            cohort.name, "cohort.by_centre=true, but no centre is given.", needed, "Fill the column centre."
        )
    names, centre_N = np.unique(cohort.centres, return_inverse=True)
    unit_N = cohort.units.index
    moved = [cohort.patients[unit_N == unit][0] for unit in range(cohort.units.count)
             if len(np.unique(centre_N[unit_N == unit])) > 1]  # fmt: skip
    lacking = [
        label
        for number, label in enumerate(cohort.classes)
        if len(np.unique(centre_N[cohort.labels == number])) < 2 and (cohort.task == "label" or label == "event")
    ]
    if len(names) < 2 or moved or lacking:
        found = f"{len(names)} centre(s)"
        found += f"; {len(moved)} patient(s) of several, first {moved[0]}" if moved else ""
        found += f"; in one centre only: {', '.join(lacking)}" if lacking else ""
        raise DataError(cohort.name, f"{found}.", needed, "Correct the column, or leave cohort.by_centre out.")
    return Folds(centre_N[None].astype(np.int64), tuple(map(str, names)))
