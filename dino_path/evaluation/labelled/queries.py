"""Who is asked in a retrieval, and among whom: test images, each among all images of other patients.

Shape suffixes: N images of the set, Q queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dino_path.errors import DataError
from dino_path.evaluation.labelled.division import Division
from dino_path.evaluation.labelled.splits import Ints
from dino_path.evaluation.measures.sample import Units


@dataclass(frozen=True)
class Queries:
    """The query images, each searching all images of other units (patients, slides, else other images).

    The queries are the tested images, which chose nothing; what they search in is the whole set, training images too:
    nothing is learned from labels here. Units are those that no split tears apart, so an exact copy is never found.

    Attributes:
        number: (Q,) in the set, ascending.
        num_others: (Q,) images of other units; num_right: (Q,) those of them with the query's class, at least one.
        left_out: by class, how many tested images have none of their class in another unit.
        units: what intervals are over.
    """

    number: Ints
    num_others: Ints
    num_right: Ints
    left_out: dict[str, int]
    units: Units


def queries_of(division: Division) -> Queries:
    """The queries of a division.

    Raises:
        DataError: no tested image has its class in another unit.
    """
    labelled, tested = division.labelled, np.unique(division.tested)
    labels, units, num_classes = labelled.labels, labelled.units, len(labelled.classes)
    count_UC = np.zeros((int(units.max()) + 1, num_classes), np.int64)
    np.add.at(count_UC, (units, labels), 1)
    num_others = len(labels) - count_UC.sum(axis=1)[units[tested]]
    num_right = count_UC.sum(axis=0)[labels[tested]] - count_UC[units[tested], labels[tested]]
    is_asked = num_right > 0
    if not is_asked.any():
        raise DataError(
            labelled.name,
            f"no test image has another of the {labelled.unit_name} with its class.",
            f"Retrieval searches other {labelled.unit_name} for an image's class, so a class needs at least two of"
            f" them.",
            "Check the column of patients or slides, or add images of more of them.",
        )
    missing = np.bincount(labels[tested[~is_asked]], minlength=num_classes)
    number = tested[is_asked]
    groups = None if labelled.groups is None else labelled.groups[number]
    return Queries(
        number=number,
        num_others=num_others[is_asked],
        num_right=num_right[is_asked],
        left_out={name: int(count) for name, count in zip(labelled.classes, missing, strict=True) if count},
        units=Units.of(groups, labelled.group_kind, len(number)),
    )
