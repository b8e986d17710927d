"""The folder of a supervised baseline: contents and reading.

OUT/result.json         metrics with intervals, settings, split, history
    predictions.csv     one row per test image: content (hash of the file), image, label, predicted, one score per class
    config.json, model.safetensors    the trained backbone as a model folder: its frozen features can be evaluated too
    checkpoint.pt       while it trains
    fraction_F/draw_N/  the same for baselines that saw a fraction F of the labels
    repeat_R/fold_F/    the same for each fold of a cross-validation, fractions below; what they amount to stands in
                        cross_validation.json in OUT
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dino_path.errors import DataError
from dino_path.evaluation.labelled.datasets import LabelledSet
from dino_path.records.baseline import BASELINE, BaselineRecord
from dino_path.records.tables import PREDICTIONS
from dino_path.sharing import shared_name


@dataclass(frozen=True)
class BaselineFolder:
    """Where the files lie."""

    path: Path

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    @property
    def predictions_file(self) -> Path:
        return self.path / "predictions.csv"

    @property
    def checkpoint_file(self) -> Path:
        return self.path / "checkpoint.pt"

    def of_draw(self, fraction: float, draw: int) -> BaselineFolder:
        """The folder of the baseline that saw a draw of a fraction of the labels; for all of them, this one."""
        return self if fraction == 1 else BaselineFolder(self.path / f"fraction_{fraction:g}" / f"draw_{draw}")

    def is_finished(self) -> bool:
        return self.result_file.is_file()

    def read_result(self) -> BaselineRecord:
        """The content of `result.json`.

        Raises:
            DataError: not there, damaged, or not written by `dino-path baseline`.
            NewerFormat: a later dino_path wrote it.
        """
        return BASELINE.read(self.result_file)

    def write_result(self, record: BaselineRecord) -> None:
        """Write `result.json`: from now on the baseline is finished."""
        BASELINE.write(self.result_file, record)

    def title(self) -> str:
        """Its name in tables: the network, its initial weights, and whether training was too short.

        Raises:
            DataError: not there, or not written by `dino-path baseline`.
        """
        record = self.read_result()
        config = record.config
        start = "from scratch" if config["weights"] is None else f"from {shared_name(config['weights'])}"
        return f"supervised {config['backbone']} ({start}{', undertrained' * record.is_undertrained})"

    def write_predictions(self, labelled: LabelledSet, test: NDArray[np.int64], scores_NC: NDArray[np.float64]) -> None:
        """Write the class scores of the test images, given as their numbers in the set."""
        columns = ("content", "image", "label", "predicted", *(f"score_{name}" for name in labelled.classes))
        rows = (
            [
                labelled.content[index].decode(),
                labelled.source.name(index),
                labelled.classes[labelled.labels[index]],
                labelled.classes[int(scores.argmax())],
                *(f"{score:.9g}" for score in scores),
            ]
            for index, scores in zip(test.tolist(), scores_NC, strict=True)
        )
        PREDICTIONS.write(self.predictions_file, columns, rows)

    def read_scores(self, labelled: LabelledSet) -> NDArray[np.float64]:
        """Class scores of the test images, in the order of the set, even if the files have moved.

        Raises:
            DataError: no baseline, or one of another split.
        """
        record = self.read_result()
        if record.data.split_digest != labelled.split_digest:
            raise DataError(
                str(self.path),
                f"this baseline was tested on another split of {record.data.name} "
                f"({record.data.split_rule}; classes {', '.join(record.data.classes)}).",
                f"Both sides of a comparison need the same images, classes and split ({labelled.split_rule}).",
                "Run `dino-path baseline` with the same --data and evaluation settings.",
            )
        columns = PREDICTIONS.read(self.predictions_file)
        try:
            scores_RC = np.array([columns[f"score_{name}"] for name in labelled.classes], np.float64).T
            row_of = {content: row for row, content in enumerate(columns["content"])}
            return scores_RC[[row_of[labelled.content[index].decode()] for index in labelled.part("test")]]
        except (KeyError, ValueError, IndexError) as error:
            raise PREDICTIONS.damaged(self.predictions_file, f"{type(error).__name__}: {error}") from None
