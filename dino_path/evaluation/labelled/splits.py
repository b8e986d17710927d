"""Training and test parts that share no patient, no slide and no image; seeded, and stratified by class.

Shape suffixes: N images, G units (what is never torn apart), C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dino_path.errors import DataError

Ints = NDArray[np.int64]

# How often the greedy draw is repeated with another order, until every class stands on both sides.
NUM_DRAWS = 100


def linked_units(groups_N: NDArray[np.str_] | None, content_N: NDArray[np.bytes_]) -> Ints:
    """For each image the number (0 to G - 1) of its unit; a split keeps all images of a unit together.

    Images share a unit when they share a group (patient, slide) or are byte for byte the same, directly or through
    others: two patients of whom one image is the same count as one unit.

    Args:
        groups_N: group of each image; None: the data name none.
        content_N: hash of each image file.
    """
    from scipy.sparse import coo_array  # here, since scipy takes a second to import
    from scipy.sparse.csgraph import connected_components

    num_images = len(content_N)
    keys: list[NDArray[Any]] = [content_N] if groups_N is None else [content_N, groups_N]
    image_index, key_index, first_free = [], [], num_images
    for key_N in keys:
        number_N = np.unique(key_N, return_inverse=True)[1]
        image_index.append(np.arange(num_images))
        key_index.append(first_free + number_N)
        first_free += int(number_N.max()) + 1
    rows, columns = np.concatenate(image_index), np.concatenate(key_index)
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(first_free, first_free))
    component = connected_components(graph, directed=False)[1][:num_images]
    units_N: Ints = np.unique(component, return_inverse=True)[1].astype(np.int64)
    return units_N


def draw_part(labels_N: Ints, units_N: Ints, fraction: float, *, seed: int, what: str, classes: tuple[str, ...],
              unit_name: str) -> NDArray[np.bool_]:  # fmt: skip
    """A seeded part (N,) with about `fraction` of every class, made of complete units.

    Units are taken in random order, large ones first, each to the side that lacks its classes most.

    Args:
        what: the data, for messages.
        unit_name: what a unit is, for messages: "patients", "slides", "images".

    Raises:
        DataError: some class cannot stand on both sides.
    """
    num_units = int(units_N.max()) + 1
    counts_GC = np.zeros((num_units, len(classes)), np.int64)
    np.add.at(counts_GC, (units_N, labels_N), 1)
    units_per_class = (counts_GC > 0).sum(axis=0)
    lacking = [f"{classes[c]} ({units_per_class[c]})" for c in np.flatnonzero(units_per_class < 2)]
    if lacking:
        raise DataError(
            what,
            f"too few {unit_name} to divide: {', '.join(lacking)}.",
            f"Every class needs at least 2 {unit_name}, one for each side (identical images count once).",
            "Add data, leave the class out, or give the split yourself (a `split` column with train, val, test).",
        )
    for attempt in range(NUM_DRAWS):
        rng = np.random.default_rng([seed, attempt])
        if num_units == len(units_N):
            chosen_G = _draw_single_images(counts_GC, fraction, rng)
        else:
            chosen_G = _draw_greedily(counts_GC, fraction, rng)
        if (counts_GC[chosen_G].sum(axis=0) > 0).all() and (counts_GC[~chosen_G].sum(axis=0) > 0).all():
            return chosen_G[units_N]
    raise DataError(
        what,
        f"no split of its {num_units} {unit_name} has every class on both sides ({NUM_DRAWS} draws).",
        f"Every class needs {unit_name} for both sides.",
        "Add data, leave a class out, or give the split yourself (a `split` column with train, val, test).",
    )


def draw_folds(labels_N: Ints, units_N: Ints, num_folds: int, *, seed: Sequence[int], what: str,
               classes: tuple[str, ...], unit_name: str, setting: str = "evaluation.cross_validation"
               ) -> Ints:  # fmt: skip
    """The fold (N,) of each image, 0 to `num_folds` - 1: each has about its share of every class, and complete units.

    Whatever fold is tested, every class is among the others. Arguments as for `draw_part`; `setting` is the name of
    that which gives the number of folds.

    Raises:
        DataError: there are fewer units than folds, or a class stands in one unit only.
    """
    num_units = int(units_N.max()) + 1
    counts_GC = np.zeros((num_units, len(classes)), np.int64)
    np.add.at(counts_GC, (units_N, labels_N), 1)
    lacking = [classes[c] for c in np.flatnonzero((counts_GC > 0).sum(axis=0) < 2)]
    if num_units < num_folds or lacking:
        raise DataError(
            what,
            f"{num_units} {unit_name} for {num_folds} folds" + f"; of {', '.join(lacking)} one" * bool(lacking) + ".",
            f"Each fold needs at least one of the {unit_name}, and each class two (identical images count once).",
            f"Lower {setting}, add data, or leave the class out.",
        )
    for attempt in range(NUM_DRAWS):
        fold_G = _deal(counts_GC, num_folds, np.random.default_rng([*seed, attempt]))
        in_fold_FC = np.zeros((num_folds, len(classes)), np.int64)
        np.add.at(in_fold_FC, fold_G, counts_GC)
        if in_fold_FC.any(axis=1).all() and ((in_fold_FC > 0).sum(axis=0) > 1).all():
            return fold_G[units_N]
    raise DataError(
        what,
        f"no {num_folds} folds of its {num_units} {unit_name} that leave every class for training ({NUM_DRAWS} draws).",
        f"Every class needs {unit_name} in two folds.",
        f"Change {setting}, add data, or leave a class out.",
    )


def draw_labelled(labels_N: Ints, units_N: Ints, fraction: float, *, seed: Sequence[int]) -> NDArray[np.bool_]:
    """Which images (N,) are labelled when `fraction` of every class is, rounded, and at least one.

    Units come in random order and each is labelled as far as its classes still need: labels are made slide by slide,
    so few labels come from few patients, not a few from every patient.
    """
    rng = np.random.default_rng(seed)
    place_N = rng.permutation(int(units_N.max()) + 1)[units_N]
    order = np.lexsort((rng.random(len(labels_N)), place_N))
    chosen_N = np.zeros(len(labels_N), bool)
    for label in np.unique(labels_N):
        members = order[labels_N[order] == label]
        chosen_N[members[: max(1, round(fraction * len(members)))]] = True
    return chosen_N


def _draw_single_images(counts_GC: Ints, fraction: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Units of one image each: the same share of every class, rounded, at least one on either side."""
    chosen_G = np.zeros(len(counts_GC), bool)
    label_G = counts_GC.argmax(axis=1)
    for label in range(counts_GC.shape[1]):
        members = rng.permutation(np.flatnonzero(label_G == label))
        chosen_G[members[: min(max(round(fraction * len(members)), 1), len(members) - 1)]] = True
    return chosen_G


def _draw_greedily(counts_GC: Ints, fraction: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    total_C = counts_GC.sum(axis=0)
    wanted = np.stack([total_C * (1 - fraction), total_C * fraction])
    lacking = wanted.copy()
    order = rng.permutation(len(counts_GC))
    order = order[np.argsort(-counts_GC[order].sum(axis=1), kind="stable")]
    chosen_G = np.zeros(len(counts_GC), bool)
    for unit in order:
        share_C = counts_GC[unit] / total_C
        rest, part = (lacking / wanted) @ share_C
        chosen_G[unit] = rng.random() < fraction if np.isclose(rest, part) else part > rest
        lacking[int(chosen_G[unit])] -= counts_GC[unit]
    return chosen_G


def _deal(counts_GC: Ints, num_folds: int, rng: np.random.Generator) -> Ints:
    """The fold (G,) of each unit: random order, large ones first, each to the fold that lacks its classes most."""
    total_C = counts_GC.sum(axis=0)
    wanted_C = total_C / num_folds
    lacking_FC = np.tile(wanted_C, (num_folds, 1))
    order = rng.permutation(len(counts_GC))
    order = order[np.argsort(-counts_GC[order].sum(axis=1), kind="stable")]
    fold_G = np.zeros(len(counts_GC), np.int64)
    for unit in order:
        lack_F = np.round((lacking_FC / wanted_C) @ (counts_GC[unit] / total_C), 9)
        best = np.lexsort((rng.random(num_folds), lacking_FC.sum(axis=1), lack_F))[-1]
        fold_G[unit] = best
        lacking_FC[best] -= counts_GC[unit]
    return fold_G
