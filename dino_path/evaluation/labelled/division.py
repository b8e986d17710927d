"""The division for testing: one split into training and test part, or the folds of a cross-validation.

Shape suffixes: N images of the set, M tested images (in a cross-validation every image once in each repeat).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dino_path.config import EvaluationConfig
from dino_path.errors import DataError
from dino_path.evaluation.labelled.datasets import GIVEN_SPLIT, LabelledSet, digest_of_split
from dino_path.evaluation.labelled.splits import draw_folds
from dino_path.evaluation.measures.confusion import Ints
from dino_path.evaluation.measures.sample import Units
from dino_path.records.tables import LABELLED

FEW_UNITS = 10  # tested by a drawn split: then every table suggests a cross-validation


@dataclass(frozen=True)
class Division:
    """A labelled set and the splits that test it; the predictions of all splits are pooled.

    Attributes:
        labelled: as it was split; in a cross-validation all of it is the test part.
        splits: one, or one per fold and repeat. Each is a labelled set of its own: whatever a protocol chooses, it
            chooses on the training part of a split.
        num_folds: None: one split.
    """

    labelled: LabelledSet
    splits: tuple[LabelledSet, ...]
    num_folds: int | None = None

    @property
    def name(self) -> str:
        """Of the data, for titles."""
        return self.labelled.name if self.num_folds is None else f"{self.labelled.name}, {self._kind()}"

    @property
    def tested(self) -> Ints:
        """Numbers (M,) of the tested images in the set, split after split."""
        return np.concatenate([split.part("test") for split in self.splits])

    @property
    def labels(self) -> Ints:
        """Classes (M,) of the tested images."""
        return self.labelled.labels[self.tested]

    def units(self) -> Units:
        """The units of intervals: patients or slides of the tested images, else images."""
        groups, tested = self.labelled.groups, self.tested
        if groups is None:
            return Units("images", np.unique(tested, return_inverse=True)[1].astype(np.int64))
        return Units.of(groups[tested], self.labelled.group_kind, len(tested))

    def folders(self, path: Path) -> list[Path]:
        """A folder for each split below `path`; for one split, `path` itself."""
        if self.num_folds is None:
            return [path]
        return [path / f"repeat_{n // self.num_folds + 1}" / f"fold_{n % self.num_folds + 1}"
                for n in range(len(self.splits))]  # fmt: skip

    def label_draws(self, fraction: float, num_draws: int, *, seed: int) -> list[Division]:
        """The same with only `fraction` of each split's training images labelled, as `LabelledSet.label_draws`."""
        draws = zip(*(split.label_draws(fraction, num_draws, seed=seed) for split in self.splits), strict=True)
        return [replace(self, splits=splits) for splits in draws]

    def notes(self) -> list[str]:
        """Sentences on how the images were tested, and on better ways."""
        unit = self.labelled.unit_name
        if self.num_folds is not None:
            times = len(self.splits) // self.num_folds
            return [
                f"{self._kind()}: each of the {unit} is tested {'once' if times == 1 else f'{times} times'}, with"
                f" models that saw none of its images; all choices are made inside the training folds; the"
                f" predictions of all folds are pooled"
            ]
        if self.labelled.split_rule.startswith(GIVEN_SPLIT) or self.units().count >= FEW_UNITS:
            return []
        all_units = int(self.labelled.units.max()) + 1
        return [
            f"only {self.units().count} {unit} are tested: with evaluation.cross_validation=5 each of the {all_units} "
            "is tested once, and intervals are narrower"
        ]

    def record(self) -> dict[str, Any]:
        """For JSON: what one needs to repeat it."""
        record = self.labelled.record()
        if self.num_folds is not None:
            record["cross_validation"] = {
                "folds": self.num_folds,
                "repeats": len(self.splits) // self.num_folds,
                "splits": [
                    {
                        "rule": split.split_rule,
                        "split_digest": split.split_digest,
                        "num_images": split.counts(),
                        "num_test_groups": split.test_units().count,
                    }
                    for split in self.splits
                ],
            }
        return record

    def write(self, out: Path) -> None:
        """Write `split.csv`, as `LabelledSet.write_split`; of a cross-validation `folds.csv`, each image's fold."""
        if self.num_folds is None:
            self.labelled.write_split(out / "split.csv")
            return
        repeats = range(len(self.splits) // self.num_folds)
        fold_RN = np.zeros((len(repeats), len(self.labelled.labels)), np.int64)
        for number, split in enumerate(self.splits):
            fold_RN[number // self.num_folds, split.part("test")] = number % self.num_folds + 1
        groups = self.labelled.groups
        group_column = [] if groups is None else [f"{self.labelled.group_kind}_id"]
        columns = ("path", "label", *group_column, "content", *(f"fold_of_repeat_{r + 1}" for r in repeats))
        rows = (
            [self.labelled.source.name(index), self.labelled.classes[label],
             *([] if groups is None else [groups[index]]), self.labelled.content[index].decode(), *fold_RN[:, index]]
            for index, label in enumerate(self.labelled.labels)
        )  # fmt: skip
        LABELLED.write(out / "folds.csv", columns, rows)

    def _kind(self) -> str:
        assert self.num_folds is not None
        times = len(self.splits) // self.num_folds
        repeats = f", {times} repeats" * (times > 1)
        return f"{self.num_folds}-fold cross-validation by {self.labelled.unit_name}{repeats}"


def divide(labelled: LabelledSet, config: EvaluationConfig) -> Division:
    """The one split of a labelled set, or `config.cross_validation` folds of it, drawn again for each repeat.

    Raises:
        DataError: folds of data that bring a split, or too few patients (slides, images) for the folds.
    """
    if config.cross_validation is None:
        return Division(labelled, (labelled,))
    if labelled.split_rule.startswith(GIVEN_SPLIT):
        raise DataError(
            labelled.name,
            f"the data have a split, but evaluation.cross_validation={config.cross_validation} asks for another.",
            "A given split is kept, because its test part may come from another hospital, or be new to the"
            " pretraining.",
            "Leave out evaluation.cross_validation, or remove the split (the column, or the folders) from the data.",
        )
    splits = [
        split for repeat in range(config.cross_validation_repeats)
        for split in _folds(labelled, config.cross_validation, repeat, config.seed)
    ]  # fmt: skip
    rule = f"{config.cross_validation} folds of {labelled.unit_name}, stratified by class, seed {config.seed}"
    repeats = f", drawn {config.cross_validation_repeats} times" * (config.cross_validation_repeats > 1)
    whole = replace(
        labelled,
        split=np.full(len(labelled.labels), "test"),
        split_rule=rule + repeats,
        split_digest=hashlib.sha256(" ".join(split.split_digest for split in splits).encode()).hexdigest(),
    )
    return Division(whole, tuple(splits), config.cross_validation)


def _folds(labelled: LabelledSet, num_folds: int, repeat: int, seed: int) -> list[LabelledSet]:
    """The set split once for each fold, which is its test part."""
    fold_N = draw_folds(
        labelled.labels, labelled.units, num_folds, seed=[seed, repeat], what=labelled.name, classes=labelled.classes,
        unit_name=labelled.unit_name,
    )  # fmt: skip
    names = tuple(labelled.classes[label] for label in labelled.labels)
    splits = []
    for fold in range(num_folds):
        split: NDArray[np.str_] = np.where(fold_N == fold, "test", "train").astype(np.str_)
        rule = f"fold {fold + 1} of {num_folds} of the {labelled.unit_name}, repeat {repeat + 1}, seed {seed}"
        splits.append(
            replace(
                labelled, split=split, split_rule=rule, split_digest=digest_of_split(labelled.content, names, split)
            )
        )
    return splits


def pooled(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Predictions of the splits for their test images (M, ...), in the order of `Division.tested`."""
    return np.concatenate(parts)
